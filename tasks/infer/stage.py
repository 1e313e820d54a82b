"""Rows of a shard to masks and rejects: check, decode each distinct image once, stream them through
the model.

A row that fails costs no other: what is wrong with it becomes a reject. What is wrong with the
machine (a store that is down, a model that cannot run at all) is not a row's fault and ends the
shard instead.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from wordmask.model.runtime.prefetch import buffered_map
from wordmask.model.types import Query, QueryError, Segmentation
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.decode import bytes_of, decode, pixels_of
from wordmask.tasks.images.uris import ImageError
from wordmask.tasks.output.reuse import Earlier, row_key
from wordmask.tasks.storage import STORE_ERRORS
from wordmask.tasks.table.read import Row
from wordmask.tasks.telemetry import metrics
from wordmask.tasks.telemetry.logs import clean
from wordmask.tasks.worker import ModelLock, SegmenterLike

Still = TypeVar("Still")

DECODE_THREADS = 2
IMAGES_AHEAD = 16  # read, and decoded if they are small, beside those that the model has
PIXELS_AHEAD = 1 << 26  # decoded
MASKS_BEHIND = 32  # masks that may be in the making beside the model
MOST_HELD = (
    1 << 30
)  # bytes of images that the model has, and of masks in the making; one row may take more


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A row's answer and what it was an answer about."""

    row: Row
    image_id: str
    height: int
    width: int
    segmentation: Segmentation


@dataclass(frozen=True, kw_only=True)
class Reject:
    row: Row
    code: RejectCode
    detail: str


@dataclass(kw_only=True)
class ShardResult:
    """Masks and rejects of a shard, each in row order once `sort` was called. `copied` of the masks
    are an earlier run's. `infer_seconds`: the model worked on them; `idle_seconds`: it stood idle,
    before they came or for want of them."""

    masks: list[Mask] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    copied: int = 0
    infer_seconds: float = 0.0
    idle_seconds: float = 0.0

    def __iadd__(self, other: ShardResult) -> ShardResult:
        """The answers of two sets of rows; the times are the other's."""
        masks, rejects = [*self.masks, *other.masks], [*self.rejects, *other.rejects]
        return replace(other, masks=masks, rejects=rejects, copied=self.copied + other.copied)

    def sort(self) -> None:
        self.masks.sort(key=lambda mask: mask.row.row)
        self.rejects.sort(key=lambda reject: reject.row.row)


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image (height, width, 3) and the rows that ask about it."""

    image_id: str
    pixels: NDArray[np.uint8]
    rows: tuple[Row, ...]

    @property
    def mask_bytes(self) -> int:
        """Of one row's mask, while it is not compressed."""
        return self.pixels.nbytes // 3


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image as it was read, how many pixels it says that it has, and the rows that ask about
    it.
    """

    image_id: str
    data: bytes
    n_pixels: int
    rows: tuple[Row, ...]


def infer(
    rows: Sequence[Row],
    shard: Shard,
    settings: SegmentSettings,
    segmenter: SegmenterLike,
    batch_rows: int,
    turn: ModelLock | None = None,
    since: float | None = None,
    earlier: Mapping[str, Earlier] = MappingProxyType({}),
) -> ShardResult:
    """Answer every row, by a mask or by a reject. Images are decoded while another shard still has
    its `turn` with the model.

    `earlier`: answers of earlier runs by `row_key`; rows that ask the same are given them.

    `since`: when the shard was begun (`time.perf_counter`), from which on the model counts as idle
    if it is free.
    """
    wanted = time.perf_counter() if since is None else since
    answers = ShardResult()
    sound = [row for row in rows if not _reject_unsound(row, shard, segmenter, answers)]
    pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
    try:
        pictures = _pictures(sound, shard, settings, answers, pool, earlier)
        asking = _Asking(pictures, segmenter, answers, batch_rows)
        with (turn or ModelLock()).taken(wanted) as idle:
            began = time.perf_counter()
            asking.ask_all()
            answers.infer_seconds = time.perf_counter() - began - asking.waited
            answers.idle_seconds = idle + asking.waited
        asking.collect()
    finally:
        pool.shutdown(cancel_futures=True)
    answers.sort()
    return answers


def _reject_unsound(row: Row, shard: Shard, segmenter: SegmenterLike, answers: ShardResult) -> bool:
    """Whether the row can be rejected before its image is touched; if so it is."""
    found = _unsound(row, shard, segmenter)
    if found is not None:
        answers.rejects.append(Reject(row=row, code=found[0], detail=found[1]))
    return found is not None


def _unsound(row: Row, shard: Shard, segmenter: SegmenterLike) -> tuple[RejectCode, str] | None:
    if row.row in shard.duplicates:
        return RejectCode.DUPLICATE_ROW_ID, f"row_id = {row.row_id!r} stands in an earlier row"
    if row.invalid_utf8:
        return (
            RejectCode.INVALID_TEXT,
            f"{', '.join(row.invalid_utf8)}: holds bytes that are no UTF-8",
        )
    if row.mode not in (None, "", "one"):
        return RejectCode.UNSUPPORTED_MODE, f'mode = {row.mode!r}: only "one" is supported'
    if row.query is None or not row.query.strip():
        return RejectCode.EMPTY_QUERY, f"query = {row.query!r}"
    if any(ref is None or any(value is None for value in ref) for ref in row.spatial_refs):
        return RejectCode.BAD_SPATIAL_REF, f"spatial_refs = {row.spatial_refs!r}: holds a null"
    if row.image_bytes is None and not row.image_uri:
        return RejectCode.MISSING_IMAGE, "the image is null"
    try:
        segmenter.check_query(row.query, _references(row))
    except QueryError as error:
        return RejectCode(error.code), error.detail
    return None


def _references(row: Row) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(float(value) for value in ref if value is not None)
        for ref in row.spatial_refs
        if ref is not None
    )


def _pictures(
    rows: Sequence[Row],
    shard: Shard,
    settings: SegmentSettings,
    answers: ShardResult,
    pool: ThreadPoolExecutor,
    earlier: Mapping[str, Earlier],
) -> Iterator[DecodedImage]:
    """Distinct images in order of their first row, read and decoded in threads a little ahead of
    their use.
    """
    groups: dict[bytes | str, list[Row]] = {}
    for row in rows:
        key = (
            hashlib.sha256(row.image_bytes).digest()
            if row.image_bytes is not None
            else str(row.image_uri)
        )
        groups.setdefault(key, []).append(row)

    def read(group: list[Row]) -> list[EncodedImage | Mask | Reject]:
        try:
            data = bytes_of(group[0], shard, settings)
        except Exception as error:
            return [*_rejects(error, group)]
        metrics.READ.inc(len(data))
        image_id = hashlib.sha256(data).hexdigest()[:32]
        found = (
            [(row, earlier.get(row_key(row, image_id))) for row in group]
            if earlier
            else [(row, None) for row in group]
        )
        copied = [copy_of(row, answer) for row, answer in found if answer is not None]
        rest = tuple(row for row, answer in found if answer is None)
        return [
            *copied,
            *(
                [EncodedImage(image_id=image_id, data=data, n_pixels=pixels_of(data), rows=rest)]
                if rest
                else []
            ),
        ]

    def decoded(image: EncodedImage) -> list[DecodedImage | Mask | Reject]:
        try:
            return [
                DecodedImage(
                    image_id=image.image_id, pixels=decode(image.data, settings), rows=image.rows
                )
            ]
        except Exception as error:
            return [*_rejects(error, image.rows)]

    images = _noting(answers, buffered_map(pool, read, groups.values(), IMAGES_AHEAD))
    least = PIXELS_AHEAD // IMAGES_AHEAD
    return _noting(
        answers,
        buffered_map(
            pool, decoded, images, PIXELS_AHEAD, weight=lambda image: max(image.n_pixels, least)
        ),
    )


def _rejects(error: Exception, rows: Sequence[Row]) -> list[Reject]:
    """Of the rows that ask about an image that cannot be had. Raises what is the machine's
    fault.
    """
    if _is_machines_fault(error):
        raise error
    if isinstance(error, ImageError):
        code, detail = error.code, error.detail
    else:  # of all that images and URIs hold nobody knows all that they lead libraries to raise
        code, detail = (
            RejectCode.IMAGE_UNREADABLE,
            clean(f"{type(error).__name__}: {error}", [row.query for row in rows]),
        )
    return [Reject(row=row, code=code, detail=detail) for row in rows]


def _noting(answers: ShardResult, found: Iterable[list[Still | Mask | Reject]]) -> Iterator[Still]:
    """What is still to be worked on. Masks, which are copied, and rejects are answers."""
    for each in chain.from_iterable(found):
        if isinstance(each, Mask):
            answers.masks.append(each)
            answers.copied += 1
        elif isinstance(each, Reject):
            answers.rejects.append(each)
        else:
            yield each


def copy_of(row: Row, answer: Earlier) -> Mask:
    """The answer of an earlier run as that of a row that asks the same."""
    return Mask(
        row=row,
        image_id=answer.image_id,
        height=answer.height,
        width=answer.width,
        segmentation=answer.segmentation,
    )


class _Asking:
    """Asks the model about pictures. `waited`: seconds in which it had none to work on.

    If it fails, the rows that it had not answered are asked about one by one, so that only the row
    at fault is lost; if the device has too little memory for so many rows, half as many are decoded
    at a time. Where the images are so large that `MOST_HELD` is reached, the model finishes those
    it has before it is given more.
    """

    def __init__(
        self,
        pictures: Iterator[DecodedImage],
        segmenter: SegmenterLike,
        answers: ShardResult,
        batch_rows: int,
    ) -> None:
        self._pictures, self._segmenter, self._answers, self._batch_rows = (
            pictures,
            segmenter,
            answers,
            batch_rows,
        )
        self._waiting: deque[DecodedImage] = (
            deque()
        )  # to be given to the model before what comes next
        self._unanswered: dict[
            int, tuple[DecodedImage, Row]
        ] = {}  # given to the model; a row leaves when the model has answered it
        self._finishing: deque[tuple[Row, str, tuple[int, int], Future[Segmentation]]] = (
            deque()
        )  # without the pixels, which are large
        self._ends_shard = False  # what went wrong is not the fault of the rows that the model has
        self.waited = 0.0

    def ask_all(self) -> None:
        """Every picture, to the end. Raises what is the machine's fault, and what reading the
        pictures raised.
        """
        finished = False
        while not finished:
            try:
                self._ask(self._next_pictures(), self._batch_rows)
            except Exception as error:
                if (
                    self._ends_shard
                    or not self._unanswered
                    or not _can_go_on(error, self._batch_rows)
                ):
                    raise
                too_many = isinstance(error, torch.OutOfMemoryError)
            else:
                self.collect(leave=MASKS_BEHIND if (finished := not self._waiting) else 0)
                continue
            # Asked again only here, where what failed holds no memory any more.
            again = _pictures_of(self._unanswered.values())
            self._unanswered.clear()
            if too_many:
                self._batch_rows //= 2
                self._waiting.extendleft(reversed(again))
            else:
                for picture in again:
                    for row in picture.rows:
                        self._ask_alone(picture, row)

    def collect(self, leave: int = 0) -> None:
        """Wait for finished masks, until only so many are not."""
        while len(self._finishing) > leave:
            row, image_id, (height, width), future = self._finishing.popleft()
            try:
                found = future.result()
            except Exception as error:
                self._reject(row, error)
            else:
                self._answers.masks.append(
                    Mask(row=row, image_id=image_id, height=height, width=width, segmentation=found)
                )

    def _next_pictures(self) -> Iterator[DecodedImage]:
        """Pictures as long as there is room for them and for the masks of their rows; what there is
        none for is left waiting. A single row has room where there is nothing else."""
        while (picture := self._next_picture()) is not None:
            room = max(0, MOST_HELD - self._held() - picture.pixels.nbytes) // picture.mask_bytes
            fit = room if self._unanswered or self._finishing else max(1, room)
            if rest := picture.rows[fit:]:
                self._waiting.appendleft(replace(picture, rows=rest))
            if fit:
                yield replace(picture, rows=picture.rows[:fit])
            if rest:
                return

    def _held(self) -> int:
        """Bytes of the pictures that the model has, and of masks that are not compressed yet."""
        pictures = {picture.image_id: picture for picture, _ in self._unanswered.values()}
        masks = [picture.mask_bytes for picture, _ in self._unanswered.values()]
        masks += [height * width for _, _, (height, width), _ in self._finishing]
        return sum(picture.pixels.nbytes for picture in pictures.values()) + sum(masks)

    def _next_picture(self) -> DecodedImage | None:
        if self._waiting:
            return self._waiting.popleft()
        began = time.perf_counter()
        try:
            return next(self._pictures, None)
        except BaseException:
            self._ends_shard = True
            raise
        finally:
            self.waited += time.perf_counter() - began

    def _ask(self, pictures: Iterable[DecodedImage], batch_rows: int) -> None:
        def asked() -> Iterator[tuple[NDArray[np.uint8], list[tuple[int, Query]]]]:
            for picture in pictures:
                self._unanswered |= {row.row: (picture, row) for row in picture.rows}
                yield (
                    picture.pixels,
                    [
                        (row.row, Query(object=str(row.query), spatial_refs=_references(row)))
                        for row in picture.rows
                    ],
                )

        for number, future in self._segmenter.stream(asked(), rows=batch_rows):
            picture, row = self._unanswered.pop(number)
            self._finishing.append((row, picture.image_id, picture.pixels.shape[:2], future))
            self.collect(leave=MASKS_BEHIND)

    def _ask_alone(self, picture: DecodedImage, row: Row) -> None:
        try:
            self._ask([replace(picture, rows=(row,))], 1)
        except Exception as error:
            if self._ends_shard or self._unanswered.pop(row.row, None) is None:
                raise  # not of this row's asking: it was answered
            self._reject(row, error)

    def _reject(self, row: Row, error: Exception) -> None:
        if not _can_go_on(error, 1):
            self._ends_shard = True
            raise error
        detail = clean(f"{type(error).__name__}: {error}", [row.query])
        self._answers.rejects.append(Reject(row=row, code=RejectCode.MODEL_ERROR, detail=detail))


def _pictures_of(asked: Iterable[tuple[DecodedImage, Row]]) -> list[DecodedImage]:
    """The pictures again, each with those of its rows that are given."""
    rows: dict[str, list[Row]] = {}
    pictures: dict[str, DecodedImage] = {}
    for picture, row in asked:
        pictures[picture.image_id] = picture
        rows.setdefault(picture.image_id, []).append(row)
    return [replace(picture, rows=tuple(rows[image_id])) for image_id, picture in pictures.items()]


def _can_go_on(error: Exception, batch_rows: int) -> bool:
    return (
        batch_rows > 1
        if isinstance(error, torch.OutOfMemoryError)
        else not _is_machines_fault(error)
    )


def _is_machines_fault(error: Exception) -> bool:
    """Whether the next row would fail too: no memory, a broken device, a store that is down. The
    row is not to blame then.
    """
    # PyTorch's own, on a CPU, and Python's where there may be no more threads.
    exhausted = isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("allocate memory", "start new thread")
    )
    return exhausted or isinstance(error, (MemoryError, *STORE_ERRORS, torch.AcceleratorError))
