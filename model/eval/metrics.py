"""How well masks match the truth.

Mean and cumulative IoU are different numbers: never compare one with the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

# Of the image's diagonal: how far from the outline a pixel still counts as boundary.
BOUNDARY_SHARE = 0.02
NEIGHBOURS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Overlap:
    """Pixels of intersection and union of one predicted and one true mask."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        if not self.union:
            return 1.0
        return self.intersection / self.union


def overlap(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> Overlap:
    """Count the overlap of two masks.

    Raises:
        ValueError: if their sizes differ.
    """
    if predicted_HW.shape != truth_HW.shape:
        raise ValueError(
            f"the predicted mask is {predicted_HW.shape}, the true one {truth_HW.shape}: both must"
            " be (height, width) of the image"
        )
    predicted = predicted_HW.astype(bool)
    truth = truth_HW.astype(bool)
    intersection = np.count_nonzero(predicted & truth)
    union = np.count_nonzero(predicted | truth)
    return Overlap(int(intersection), int(union))


def miou(overlaps: Iterable[Overlap]) -> float:
    """Return the mean over rows of each row's IoU; NaN without rows."""
    ious = [found.iou for found in overlaps]
    if not ious:
        return float("nan")
    return float(np.mean(ious))


def ciou(overlaps: Iterable[Overlap]) -> float:
    """Return the cumulative IoU: all intersections over all unions, so large objects weigh more.

    Returns: NaN without any pixel.
    """
    intersection = union = 0
    for found in overlaps:
        intersection += found.intersection
        union += found.union
    if not union:
        return float("nan")
    return intersection / union


def boundary_overlap(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> Overlap:
    """Count the overlap of the bands inside both outlines (boundary IoU, arXiv 2103.16562).

    The bands are `BOUNDARY_SHARE` of the image's diagonal wide.
    """
    diagonal = float(np.hypot(*truth_HW.shape))
    width = max(1, round(BOUNDARY_SHARE * diagonal))
    return overlap(_band(predicted_HW, width), _band(truth_HW, width))


def _band(mask_HW: np.ndarray, width: int) -> np.ndarray:
    mask = mask_HW.astype(np.uint8)
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    inner = cv2.erode(padded, NEIGHBOURS, iterations=width)
    return mask - inner[1:-1, 1:-1]
