"""Scores of referring segmentation: every row of the truth counts, answered or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wordmask.model.eval.metrics import Overlap, boundary_overlap, ciou, miou, overlap
from wordmask.model.masks import rle


@dataclass(frozen=True, kw_only=True)
class ReferringScores:
    """`rows` of the truth, how they were answered, and the measures in 0..1.

    An absent, rejected or missing row is scored as an empty mask: IoU 0 where the truth is not
    empty, 1 where it is. `absent_f1` is the harmonic mean of precision and recall of the answer
    "absent", None where no truth is empty.
    """

    rows: int
    masks: int
    absent: int
    rejected: int
    missing: int
    miou: float
    ciou: float
    boundary_iou: float
    absent_f1: float | None


@dataclass(frozen=True)
class Answer:
    """How a row ended: "mask", "absent" or "rejected", and its mask if it has one."""

    status: str
    mask: Mapping[str, Any] | None = None


MISSING = Answer("missing")


def score(
    truth: Iterable[tuple[str, Mapping[str, Any]]], answers: Mapping[str, Answer]
) -> ReferringScores:
    """Score answers by row_id against pairs of row_id and true RLE.

    Raises:
        ValueError: naming the row, if a mask is no RLE or its size is not the truth's.
    """
    overlaps: list[Overlap] = []
    boundaries: list[Overlap] = []
    counts = dict.fromkeys(("mask", "absent", "rejected", "missing"), 0)
    empty = rightly_absent = 0
    for row_id, true_rle in truth:
        answer = answers.get(row_id, MISSING)
        counts[answer.status] += 1
        true_mask = _decode(row_id, "true", true_rle)
        predicted = _predicted(row_id, answer, true_mask)
        if not true_mask.any():
            empty += 1
            rightly_absent += answer.status == "absent"
        overlaps.append(overlap(predicted, true_mask))
        boundaries.append(boundary_overlap(predicted, true_mask))
    return ReferringScores(
        rows=len(overlaps),
        masks=counts["mask"],
        absent=counts["absent"],
        rejected=counts["rejected"],
        missing=counts["missing"],
        miou=miou(overlaps),
        ciou=ciou(overlaps),
        boundary_iou=miou(boundaries),
        absent_f1=_f1(rightly_absent, counts["absent"], empty),
    )


def _f1(right: int, claimed: int, true: int) -> float | None:
    if not true:
        return None
    return 2 * right / (true + claimed)


def _predicted(row_id: str, answer: Answer, true_mask: np.ndarray) -> np.ndarray:
    if answer.mask is None:
        return np.zeros_like(true_mask)
    predicted = _decode(row_id, "predicted", answer.mask)
    if predicted.shape != true_mask.shape:
        raise ValueError(
            f"row_id = {row_id!r}: the predicted mask is {predicted.shape}, the true one"
            f" {true_mask.shape} (height, width); both must have the size of the image, EXIF"
            " orientation applied"
        )
    return predicted


def _decode(row_id: str, which: str, mask: Mapping[str, Any]) -> np.ndarray:
    try:
        return rle.decode(rle.Rle(size=list(mask["size"]), counts=mask["counts"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"row_id = {row_id!r}: the {which} mask is no RLE: {error}") from None
