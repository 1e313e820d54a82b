"""Stream images and their rows through the model, in bounded memory, without losing a row."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wordmask.model.types import Query, Segmentation
from wordmask.tasks.context import SegmenterLike
from wordmask.tasks.devices import lacks_device_memory
from wordmask.tasks.infer.canary import Canary
from wordmask.tasks.infer.checks import references
from wordmask.tasks.infer.faults import can_retry, reject_answer
from wordmask.tasks.infer.images import Decoded, DecodedImage
from wordmask.tasks.rows import Mask, Row, RowResult

MAX_IN_FLIGHT = 32  # masks that may be in the making beside the model
# Bytes of the images that the model has and of masks in the making. One row may take more.
MAX_BYTES = 1 << 30
SUSPICIOUS = 2  # rows that fail alone in the same way, before the model is suspected


@dataclass(frozen=True, kw_only=True)
class _InFlight:
    """A row whose mask is in the making, without the pixels of its image, which are large."""

    row: Row
    image_id: str
    height: int
    width: int
    future: Future[Segmentation]

    def mask(self) -> Mask:
        """Wait for the mask. Raises what went wrong with it."""
        return Mask(
            row=self.row,
            image_id=self.image_id,
            height=self.height,
            width=self.width,
            segmentation=self.future.result(),
        )


class ModelStream:
    """Gives images to the model and collects how their rows end.

    If the model fails, the rows that it had not answered are asked about one by one, so that only
    the row at fault is lost. Where the model may be at fault itself, a row that is known to work
    decides (`Canary`). If the device has too little memory for so many rows, half as many are
    decoded at a time. Where the images are so large that `MAX_BYTES` is reached, the model finishes
    those it has before it is given more.

    `starved_seconds`: the model had no image to work on.
    """

    def __init__(
        self, segmenter: SegmenterLike, batch_rows: int, images: Iterator[Decoded]
    ) -> None:
        self._segmenter = segmenter
        self.canary = Canary(segmenter)
        self._batch_rows = batch_rows
        self._images = images
        self._waiting: deque[DecodedImage] = deque()  # go to the model before the next image
        # Given to the model, by position. A row leaves when the model has answered it.
        self._pending: dict[int, tuple[DecodedImage, Row]] = {}
        self._in_flight: deque[_InFlight] = deque()
        self._results: list[RowResult] = []
        self._ends_shard = False  # what failed is not the fault of the rows that the model has
        self.starved_seconds = 0.0

    def run(self) -> None:
        """Give every image to the model.

        Raises:
            ModelFailsError: the model fails on a row that is known to work.
            Exception: the machine or an image is at fault.
        """
        try:
            self._stream_all()
        except Exception as error:
            self.canary.decide_about(error)
            raise

    def _stream_all(self) -> None:
        while True:
            try:
                self._stream(self._next_images(), self._batch_rows)
            except Exception as error:
                if self._ends_shard or not self._pending or not can_retry(error, self._batch_rows):
                    raise
                too_many_rows = lacks_device_memory(error)
            else:
                if not self._waiting:
                    return
                self._collect(leave=0)
                continue
            # Only here, where nothing refers to the error any more, is the memory of what failed
            # free.
            self._retry(too_many_rows=too_many_rows)

    def finish(self) -> list[RowResult]:
        """Wait for the masks in the making, and return the result of every row."""
        self._collect(leave=0)
        return self._results

    def _retry(self, *, too_many_rows: bool) -> None:
        images = _regroup(self._pending.values())
        self._pending.clear()
        if too_many_rows:
            self._batch_rows //= 2
            self._waiting.extendleft(reversed(images))
            return
        self._collect(leave=0)
        for image in images:
            for row in image.rows:
                self._run_one(image, row)
                self.canary.decide(alike=SUSPICIOUS)

    def _run_one(self, image: DecodedImage, row: Row) -> None:
        """Ask about a row by itself, and wait for the answer: rows fail and succeed in turn."""
        try:
            self._stream([replace(image, rows=(row,))], 1)
            self._collect(leave=0)
        except Exception as error:
            if self._ends_shard or self._pending.pop(row.position, None) is None:
                raise  # the row was answered, so it is not at fault
            self._reject(row, error)

    def _stream(self, images: Iterable[DecodedImage], batch_rows: int) -> None:
        for position, future in self._segmenter.stream(self._requests(images), rows=batch_rows):
            image, row = self._pending.pop(position)
            height, width = image.pixels.shape[:2]
            self._in_flight.append(
                _InFlight(
                    row=row, image_id=image.image_id, height=height, width=width, future=future
                )
            )
            self._collect(leave=MAX_IN_FLIGHT)

    def _requests(
        self, images: Iterable[DecodedImage]
    ) -> Iterator[tuple[NDArray[np.uint8], Sequence[tuple[int, Query]]]]:
        """Yield images with the queries about them, each tagged by the position of its row."""
        for image in images:
            self._pending |= {row.position: (image, row) for row in image.rows}
            queries = [
                Query(object=str(row.query), spatial_refs=references(row)) for row in image.rows
            ]
            positions = [row.position for row in image.rows]
            yield image.pixels, [*zip(positions, queries, strict=True)]

    def _next_images(self) -> Iterator[DecodedImage]:
        """Yield images as long as there is room for them and for the masks of their rows.

        The rows without room are left waiting. A single row has room where there is nothing else.
        """
        while (image := self._next_image()) is not None:
            room = max(0, MAX_BYTES - self._bytes_held() - image.pixels.nbytes)
            n_rows = room // image.mask_bytes
            if not self._pending and not self._in_flight:
                n_rows = max(1, n_rows)
            rest = image.rows[n_rows:]
            if rest:
                self._waiting.appendleft(replace(image, rows=rest))
            if n_rows:
                yield replace(image, rows=image.rows[:n_rows])
            if rest:
                return

    def _next_image(self) -> DecodedImage | None:
        if self._waiting:
            return self._waiting.popleft()
        started = time.perf_counter()
        try:
            for results, image in self._images:
                self._results += results
                if image is not None:
                    return image
            return None
        except BaseException:
            self._ends_shard = True
            raise
        finally:
            self.starved_seconds += time.perf_counter() - started

    def _bytes_held(self) -> int:
        """Return the bytes of the images that the model has, and of masks not yet compressed."""
        images = {image.image_id: image for image, _ in self._pending.values()}
        pixels = sum(image.pixels.nbytes for image in images.values())
        pending = sum(image.mask_bytes for image, _ in self._pending.values())
        in_flight = sum(each.height * each.width for each in self._in_flight)
        return pixels + pending + in_flight

    def _collect(self, leave: int) -> None:
        """Wait for masks in the making, until at most `leave` are left."""
        while len(self._in_flight) > leave:
            in_flight = self._in_flight.popleft()
            try:
                self._results.append(in_flight.mask())
                self.canary.row_answered()
            except Exception as error:
                self._reject(in_flight.row, error)

    def _reject(self, row: Row, error: Exception) -> None:
        if not can_retry(error, 1):
            self._ends_shard = True
            raise error
        self._results.append(reject_answer(error, row))
        self.canary.row_failed(row, error)


def _regroup(pending: Iterable[tuple[DecodedImage, Row]]) -> list[DecodedImage]:
    """Return the images again, each with those of its rows that are pending."""
    images: dict[str, DecodedImage] = {}
    rows: dict[str, list[Row]] = {}
    for image, row in pending:
        images[image.image_id] = image
        rows.setdefault(image.image_id, []).append(row)
    return [replace(image, rows=tuple(rows[image_id])) for image_id, image in images.items()]
