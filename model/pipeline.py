"""The stages of many rows at once: in batches on the device, in threads beside it.

Images are cut into crops ahead of the encoder, and crops of several images are encoded together.
The engine decodes the rows of all images continuously. Rows are rasterised, and finished after
refining, in threads; crops of several rows are refined together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from wordmask.model.decoding.path_tokens import ParsedPath
from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.masks.cleanup import clean
from wordmask.model.masks.crops import RefinerCrop
from wordmask.model.nn.image_crops import ImageCrops
from wordmask.model.runtime.prefetch import buffered_map
from wordmask.model.stages import (
    ModelStages,
    RefinedCrop,
    choose_mask,
    paste_refined,
    rasterize_coarse,
    score,
    to_segmentation,
)
from wordmask.model.types import Query, Segmentation

IMAGES_AHEAD = 16  # cut into crops before they are encoded

Tag = TypeVar("Tag")
Item = TypeVar("Item")
ImageQueries = tuple[np.ndarray, Sequence[tuple[Tag, Query]]]
CroppedImage = tuple[ImageCrops, np.ndarray, Sequence[tuple[Any, Query]]]
EncodedImage = tuple[Tensor, list[tuple[tuple[Any, np.ndarray], Prompt]]]


@dataclass(frozen=True)
class CoarseRow:
    """A row before the refiner; `crop` is None where there is nothing to refine."""

    decoded: Decoded
    path: ParsedPath
    mask_HW: np.ndarray
    crop: RefinerCrop | None


class Pipeline:
    """Runs the stages for a stream of images and queries."""

    def __init__(
        self, stages: ModelStages, trace: Callable[[np.ndarray], str], n_threads: int
    ) -> None:
        """Take the stages, how masks are traced, and how many threads work beside the model."""
        self._stages = stages
        self._trace = trace
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="beside-the-model")

    def run(
        self, images: Iterable[ImageQueries[Tag]], max_batch_size: int
    ) -> Iterator[tuple[Tag, Future[Segmentation]]]:
        """Yield each query's tag and answer as they are decoded, see `Segmenter.stream`."""
        encoded = self.encode(images)
        decoded = self._stages.decode(encoded, max_batch_size)
        yield from self._refine(decoded)

    def encode(self, images: Iterable[ImageQueries[Any]]) -> Iterator[EncodedImage]:
        """Yield the image tokens and the prompts of images; each prompt's tag holds its image."""
        cropped = buffered_map(self._threads, self._crop, images, depth=IMAGES_AHEAD)
        for part in in_batches(cropped, self._stages.crops_at_once, size=_count_crops):
            image_IPD = self._stages.encode([crops for crops, _, _ in part])
            for image_PD, (_, image_HW3, queries) in zip(image_IPD, part, strict=True):
                prompts = [((tag, image_HW3), self._stages.prompt(query)) for tag, query in queries]
                yield image_PD, prompts

    def _crop(self, item: ImageQueries[Any]) -> CroppedImage:
        image_HW3, queries = item
        return self._stages.crop(image_HW3), image_HW3, queries

    def _refine(
        self, decoded: Iterable[tuple[tuple[Tag, np.ndarray], Decoded]]
    ) -> Iterator[tuple[Tag, Future[Segmentation]]]:
        """Yield tags and answers; what fails in a thread is the error of its row alone."""
        for part in in_batches(self._draw_all(decoded), self._stages.crops_at_once):
            rows: list[tuple[Tag, CoarseRow]] = []
            for tag, future in part:
                error = future.exception()
                if error is None:
                    rows.append((tag, future.result()))
                else:
                    yield tag, _failed(error)
            refined = self._stages.refine([row.crop for _, row in rows])
            for (tag, row), crop in zip(rows, refined, strict=True):
                yield tag, self._threads.submit(self._finish, row, crop)

    def _draw_all(
        self, decoded: Iterable[tuple[tuple[Tag, np.ndarray], Decoded]]
    ) -> Iterator[tuple[Tag, Future[CoarseRow]]]:
        for (tag, image_HW3), row in decoded:
            yield tag, self._threads.submit(self._draw, image_HW3, row)

    def _draw(self, image_HW3: np.ndarray, decoded: Decoded) -> CoarseRow:
        """Do what lies between the decoder and the refiner."""
        path = self._stages.parse(decoded)
        coarse_HW = rasterize_coarse(decoded, path, image_HW3)
        crop = self._stages.crop_for_refiner(image_HW3, coarse_HW, decoded)
        return CoarseRow(decoded, path, coarse_HW, crop)

    def _finish(self, row: CoarseRow, refined: RefinedCrop | None) -> Segmentation:
        """Do what comes after the refiner."""
        refined_HW = paste_refined(refined, row.mask_HW)
        mask_HW, is_refined = choose_mask(row.mask_HW, refined_HW)
        mask_HW = clean(mask_HW)
        outline = self._trace(mask_HW)
        scores = score(row.decoded, row.mask_HW, refined_HW, refined)
        return to_segmentation(
            row.decoded, row.path, mask_HW, outline, scores, is_refined=is_refined
        )


def _count_crops(image: CroppedImage) -> int:
    crops, _, _ = image
    return len(crops.crops_NHWC)


def _failed(error: BaseException) -> Future[Segmentation]:
    future: Future[Segmentation] = Future()
    future.set_exception(error)
    return future


def in_batches(
    items: Iterable[Item], min_size: int, size: Callable[[Item], int] = lambda _: 1
) -> Iterator[list[Item]]:
    """Yield items in lists whose sizes add up to `min_size`, or just more."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= min_size:
            yield batch
            batch = []
            total = 0
    if batch:
        yield batch
