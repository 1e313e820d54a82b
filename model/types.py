"""What is asked of a model and what it answers. Without PyTorch, so that who only passes them on
need not load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wordmask.model.masks import rle


@dataclass(frozen=True, kw_only=True)
class Query:
    """One expression, in `segment_many` about image number `image`.

    References are points (x, y) or boxes (x_min, y_min, x_max, y_max) in unit of image.
    """

    object: str
    spatial_refs: tuple[tuple[float, ...], ...] = ()
    image: int = 0


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The answer to one query.

    `status` is "mask", or "absent" if the model says that the expression names nothing here. `rle`
    is the mask in COCO's compressed form, `mask` (H, W) uint8 of 0/1 decoded from it; `bbox` (x, y,
    w, h) and `area` of it in pixels; `path` its outline in pixels. `coarse_path` (unit of box) and
    `coarse_bbox` (cx, cy, w, h in unit of image) are what the language model drew. Scores are None
    where there is nothing to score. `refined`: the refiner's mask, not the coarse one. `salvaged`:
    the path was malformed and only its whole commands before the problem were used; `path_problem`
    says what it was. `truncated`: the token limit cut it short.
    """

    status: str
    rle: dict[str, Any]
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
        return rle.decode(self.rle)


class QueryError(ValueError):
    """A query that cannot be asked. `code` is one of the reject codes of a row; the message is its
    detail.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
