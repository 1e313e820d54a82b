"""Confidence in a mask without its ground truth."""

from __future__ import annotations

from math import exp

import numpy as np


def mask_iou(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Intersection over union of two masks of one size; 1 where both are empty."""
    union = int(np.count_nonzero(a_HW | b_HW))
    return int(np.count_nonzero(a_HW & b_HW)) / union if union else 1.0


def trust(
    *, predicted_iou: float | None, path_logprob: float | None, coarse_refined_iou: float | None
) -> float | None:
    """One number in 0..1 to sort masks by: the geometric mean of the signals there are. Not
    calibrated.

    The refiner's predicted IoU (clipped to 0..1), the mean probability of a path token, and the
    agreement of the coarse with the refined mask. None if there is no signal at all.
    """
    signals = [
        None if predicted_iou is None else min(max(predicted_iou, 0.0), 1.0),
        None if path_logprob is None else exp(path_logprob),
        coarse_refined_iou,
    ]
    known = [max(signal, 1e-6) for signal in signals if signal is not None]
    return float(np.prod(known) ** (1 / len(known))) if known else None
