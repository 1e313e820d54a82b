"""Measures with values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from wordmask.model.eval.metrics import Overlap, boundary_overlap, ciou, miou, overlap
from wordmask.model.eval.referring import Answer, score
from wordmask.model.masks import rle


def box(x: int, y: int, w: int, h: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def runs(mask: np.ndarray) -> dict[str, Any]:
    return dict(rle.encode(mask))


def test_overlap_of_two_boxes() -> None:
    found = overlap(box(0, 0, 10, 10), box(5, 0, 10, 10))
    assert found == Overlap(intersection=50, union=150)
    assert found.iou == pytest.approx(1 / 3)


def test_empty_masks_agree_and_an_empty_one_misses_all() -> None:
    assert overlap(box(0, 0, 0, 0), box(0, 0, 0, 0)).iou == 1
    assert overlap(box(0, 0, 0, 0), box(0, 0, 2, 2)).iou == 0


def test_mean_and_cumulative_are_different_numbers() -> None:
    small_right, large_wrong = Overlap(1, 1), Overlap(0, 99)
    assert miou([small_right, large_wrong]) == 0.5
    assert ciou([small_right, large_wrong]) == pytest.approx(0.01)
    assert math.isnan(miou([]))
    assert math.isnan(ciou([]))


def test_masks_of_two_sizes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(20, 20\).*\(30, 30\)"):
        overlap(box(0, 0, 1, 1), box(0, 0, 1, 1, size=30))


def test_boundary_is_a_band_inside_the_outline_also_at_the_border_of_the_image() -> None:
    full = box(0, 0, 100, 100, size=100)  # band: round(0.02 * 141.4) = 3 pixels
    assert boundary_overlap(full, full) == Overlap(100**2 - 94**2, 100**2 - 94**2)


def test_boundary_sees_what_area_hides_and_hides_what_lies_within() -> None:
    truth = box(10, 10, 80, 80, size=100)
    shifted, holed = box(14, 10, 80, 80, size=100), truth.copy()
    holed[49:51, 49:51] = 0
    assert overlap(shifted, truth).iou > 0.9
    assert boundary_overlap(shifted, truth).iou < 0.5
    assert (
        boundary_overlap(holed, truth).intersection == boundary_overlap(truth, truth).intersection
    )
    assert boundary_overlap(holed, truth).iou < 1, "a hole has an outline of its own"


def test_a_thin_object_is_all_boundary() -> None:
    a, b = box(5, 8, 40, 4, size=100), box(5, 9, 40, 4, size=100)
    assert boundary_overlap(a, b) == overlap(a, b)


def test_every_row_of_the_truth_counts() -> None:
    thing, nothing = runs(box(0, 0, 4, 4)), runs(box(0, 0, 0, 0))
    truth = [
        ("right", thing),
        ("half", thing),
        ("absent", thing),
        ("rejected", thing),
        ("missing", thing),
        ("rightly absent", nothing),
    ]
    answers = {
        "right": Answer("mask", thing),
        "half": Answer("mask", runs(box(0, 0, 4, 2))),
        "absent": Answer("absent", nothing),
        "rejected": Answer("rejected"),
        "rightly absent": Answer("absent", nothing),
        "never asked": Answer("mask", thing),
    }
    found = score(truth, answers)
    assert (found.rows, found.masks, found.absent, found.rejected, found.missing) == (6, 2, 2, 1, 1)
    assert found.miou == pytest.approx((1 + 0.5 + 0 + 0 + 0 + 1) / 6)
    assert found.ciou == pytest.approx((16 + 8) / (16 * 5))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (runs(box(0, 0, 4, 4, size=30)), "must have the size of the image"),
        ({"size": [20, 20], "counts": "0"}, "is no RLE"),
    ],
)
def test_a_mask_that_cannot_be_scored_is_named(mask: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"'r7'.*{words}"):
        score([("r7", runs(box(0, 0, 4, 4)))], {"r7": Answer("mask", mask)})
