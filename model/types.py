"""Queries and answers of a model; without PyTorch, for code that only passes them on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wordmask.model.masks.rle import Rle, decode
from wordmask.schemas.rejects import RejectCode


@dataclass(frozen=True, kw_only=True)
class Query:
    """One expression about an image.

    Args:
        object: the expression.
        spatial_refs: points (x, y) or boxes (x_min, y_min, x_max, y_max) in unit of image.
        image: index of the image, in `Segmenter.segment_many`.
    """

    object: str
    spatial_refs: tuple[tuple[float, ...], ...] = ()
    image: int = 0


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The answer to one query.

    Args:
        status: "mask", or "absent" if the model says that the expression names nothing here.
        rle: the mask in COCO's compressed form.
        bbox: (x, y, w, h) of the mask in pixels.
        area: of the mask in pixels.
        path: outline of the mask in pixels.
        coarse_path: the language model's path in unit of box.
        coarse_bbox: the language model's box (cx, cy, w, h) in the image, in unit of it.
        predicted_iou: the refiner's estimate of its IoU with the truth.
        path_logprob: mean log-probability of a path token.
        coarse_refined_iou: IoU of the coarse and the refined mask.
        iteration_stability: IoU of the refiner's last two masks.
        trust: one number in 0..1 of these scores; a score is None where there is nothing to score.
        refined: the mask is the refiner's, not the coarse one.
        salvaged: the path was malformed, and only its whole commands before the problem were used.
        truncated: the token limit cut the path short.
        path_problem: what was wrong with the path, if anything was.
        n_path_tokens: tokens of the path.
    """

    status: str
    rle: Rle
    bbox: tuple[int, int, int, int]
    area: int
    path: str
    coarse_path: str
    coarse_bbox: tuple[float, float, float, float]
    predicted_iou: float | None
    path_logprob: float | None
    coarse_refined_iou: float | None
    iteration_stability: float | None
    trust: float | None
    refined: bool
    salvaged: bool
    truncated: bool
    path_problem: str | None
    n_path_tokens: int

    @property
    def mask(self) -> np.ndarray:
        """Return the mask, (H, W) uint8 of 0/1."""
        return decode(self.rle)


class QueryError(ValueError):
    """A query that cannot be asked.

    `code` is the one that its row is rejected with, `detail` the error's message.
    """

    def __init__(self, code: RejectCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
