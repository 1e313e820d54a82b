"""How well masks match the truth. mIoU and cIoU are different numbers: never compare one with the
other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

BOUNDARY_SHARE = (
    0.02  # of the image's diagonal: how far from the outline a pixel still counts as boundary
)


@dataclass(frozen=True)
class Overlap:
    """Pixels of intersection and union of one predicted and one true mask."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> Overlap:
    """Overlap of two masks of one size. Raises ValueError if the sizes differ."""
    if predicted_HW.shape != truth_HW.shape:
        raise ValueError(
            f"the predicted mask is {predicted_HW.shape}, the true one {truth_HW.shape}: both must"
            " be (height, width) of the image"
        )
    a, b = predicted_HW.astype(bool), truth_HW.astype(bool)
    return Overlap(int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b)))


def miou(overlaps: Iterable[Overlap]) -> float:
    """Mean over rows of each row's IoU. NaN without rows."""
    ious = [found.iou for found in overlaps]
    return float(np.mean(ious)) if ious else float("nan")


def ciou(overlaps: Iterable[Overlap]) -> float:
    """Cumulative IoU: all intersections over all unions, so that large objects weigh more. NaN
    without any pixel.
    """
    total = (
        np.array([(found.intersection, found.union) for found in overlaps])
        .reshape(-1, 2)
        .sum(axis=0)
    )
    return float(total[0] / total[1]) if total[1] else float("nan")


def boundary_overlap(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> Overlap:
    """Overlap of the bands inside both outlines, `BOUNDARY_SHARE` of the diagonal wide (boundary
    IoU, arXiv 2103.16562).
    """
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth_HW.shape))))
    return overlap(_band(predicted_HW, width), _band(truth_HW, width))


def _band(mask_HW: np.ndarray, width: int) -> np.ndarray:
    padded = cv2.copyMakeBorder(mask_HW.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask_HW.astype(np.uint8) - inner
