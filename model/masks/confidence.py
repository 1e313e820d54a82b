"""Confidence in a mask without its ground truth; formulas in docs/model.md, Scores."""

from __future__ import annotations

from math import exp

import numpy as np

LEAST_SIGNAL = 1e-6  # in place of 0, which would hide all other signals


def mask_iou(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Return the intersection over union of two masks of one size; 1 where both are empty."""
    union = int(np.count_nonzero(a_HW | b_HW))
    if union == 0:
        return 1.0
    return int(np.count_nonzero(a_HW & b_HW)) / union


def trust(
    *, predicted_iou: float | None, path_logprob: float | None, coarse_refined_iou: float | None
) -> float | None:
    """Return one number in 0..1 to sort masks by: the geometric mean of the given signals.

    It is not calibrated.

    Args:
        predicted_iou: the refiner's, clipped to 0..1.
        path_logprob: mean log probability of a path token.
        coarse_refined_iou: agreement of the coarse with the refined mask.

    Returns:
        The mean, None if there is no signal at all.
    """
    signals: list[float] = []
    if predicted_iou is not None:
        signals.append(min(max(predicted_iou, 0.0), 1.0))
    if path_logprob is not None:
        signals.append(exp(path_logprob))
    if coarse_refined_iou is not None:
        signals.append(coarse_refined_iou)
    if not signals:
        return None
    product = np.prod([max(signal, LEAST_SIGNAL) for signal in signals])
    return float(product ** (1 / len(signals)))
