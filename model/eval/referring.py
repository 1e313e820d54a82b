"""Referring segmentation: every row of the truth counts, whether the model answered it or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model import rle
from model.eval.metrics import Overlap, boundary_overlap, ciou, miou, overlap


@dataclass(frozen=True, kw_only=True)
class ReferringScores:
    """`rows` of the truth, how they were answered, and the three measures in 0..1. An absent, rejected or missing row is
    scored as an empty mask: IoU 0 where the truth is not empty."""

    rows: int
    masks: int
    absent: int
    rejected: int
    missing: int
    miou: float
    ciou: float
    boundary_iou: float


@dataclass(frozen=True)
class Answer:
    """What became of a row: "mask", "absent" or "rejected", and its mask if it has one."""

    status: str
    mask: Mapping[str, Any] | None = None


def score(truth: Iterable[tuple[str, Mapping[str, Any]]], answers: Mapping[str, Answer]) -> ReferringScores:
    """Score (row_id, true RLE) pairs against answers by row_id. Raises ValueError if a mask's size is not the truth's."""
    overlaps: list[Overlap] = []
    boundaries: list[Overlap] = []
    counts = dict.fromkeys(("mask", "absent", "rejected", "missing"), 0)
    for row_id, true_rle in truth:
        answer = answers.get(row_id, Answer("missing"))
        counts[answer.status] += 1
        true_mask = rle.decode(rle.Rle(size=list(true_rle["size"]), counts=true_rle["counts"]))
        predicted = np.zeros_like(true_mask)
        if answer.mask is not None:
            predicted = rle.decode(rle.Rle(size=list(answer.mask["size"]), counts=answer.mask["counts"]))
        overlaps.append(overlap(predicted, true_mask))
        boundaries.append(boundary_overlap(predicted, true_mask))
    return ReferringScores(
        rows=len(overlaps), masks=counts["mask"], absent=counts["absent"], rejected=counts["rejected"], missing=counts["missing"],
        miou=miou(overlaps), ciou=ciou(overlaps), boundary_iou=miou(boundaries),
    )  # fmt: skip
