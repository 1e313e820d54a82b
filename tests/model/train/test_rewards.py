"""Rewards by hand: squares whose overlaps can be counted."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from wordmask.model.decoding.requests import Decoded
from wordmask.model.train.rl.rewards import (
    BOUNDARY_WEIGHT,
    IOU_WEIGHT,
    box_around,
    box_iou,
    mean_pairwise_iou,
    reward,
)
from wordmask.model.train.small_model import small_tokenizer

TOKENIZER = small_tokenizer()
SQUARE = "M 0 0 L 960 0 960 960 0 960 z"
NOTHING = np.zeros((100, 100), np.uint8)


def square(left: int) -> np.ndarray:
    """40 x 40 pixels of 100 x 100, from (left, 30) on."""
    mask = NOTHING.copy()
    mask[30:70, left : left + 40] = 1
    return mask


def row(
    path: str = SQUARE,
    box: tuple[float, float, float, float] = (0.5, 0.5, 0.4, 0.4),
    *,
    absent: bool = False,
) -> Decoded:
    ids = tuple(TOKENIZER.path_ids(path.split()))
    return Decoded(box=box, ids=ids, absent=absent, truncated=False, path_logprob=None)


def test_the_true_mask_is_worth_one() -> None:
    found = reward(row(), square(30), TOKENIZER)
    assert (found.value, found.iou) == (1.0, 1.0)
    assert np.array_equal(found.mask_HW, square(30))


def test_a_shifted_square_by_hand() -> None:
    """Shifted by 10 of 40 pixels: 30 x 40 of 50 x 40 in common.

    Bands are 3 pixels wide (2 % of 141): frames of 40² - 34², which share two strips of 3 x 30
    above and below, and nothing else.
    """
    found = reward(row(), square(40), TOKENIZER)
    assert found.iou == 1200 / 2000
    band, common = 40**2 - 34**2, 2 * 3 * 30
    assert found.value == pytest.approx(
        IOU_WEIGHT * 0.6 + BOUNDARY_WEIGHT * common / (2 * band - common)
    )


def test_weights_add_up() -> None:
    assert IOU_WEIGHT + BOUNDARY_WEIGHT == 1.0


@pytest.mark.parametrize(
    "drawn",
    [
        row(absent=True),
        row(box=(0.05, 0.05, 0.1, 0.1)),  # elsewhere
        row(box=(2.0, 2.0, 0.4, 0.4)),  # outside the image
        row("M 0 0 L 960 960 z"),  # no area
        row("M 0 0 L 960 0 960"),  # malformed: an odd number of coordinates
        row("L 0 0 960 0 960 960 z"),  # malformed: no M
        row(""),
    ],
)
def test_worth_nothing(drawn: Decoded) -> None:
    found = reward(drawn, square(30), TOKENIZER)
    assert (found.value, found.iou) == (0.0, 0.0)


def test_a_malformed_path_is_not_salvaged() -> None:
    found = reward(row(SQUARE + " L 5"), square(30), TOKENIZER)
    assert (found.value, found.mask_HW.any()) == (0.0, False)


@pytest.mark.parametrize(
    ("drawn", "value"), [(row(absent=True), 1.0), (row(), 0.0), (row("M 0 0 L 960 960 z"), 0.0)]
)
def test_what_is_absent_is_to_be_called_absent(drawn: Decoded, value: float) -> None:
    """A path that fills nothing says that there is something all the same."""
    assert reward(drawn, NOTHING, TOKENIZER).value == value


def test_how_alike_masks_are() -> None:
    assert mean_pairwise_iou([square(30), square(30)]) == 1.0
    assert mean_pairwise_iou([square(30), square(40), NOTHING]) == pytest.approx(0.6 / 3)
    assert mean_pairwise_iou([NOTHING, NOTHING]) == 1.0
    assert math.isnan(mean_pairwise_iou([square(30)]))


def test_a_reward_takes_less_than_two_milliseconds() -> None:
    truth = np.kron(square(30), np.ones((2, 2), np.uint8))[:160, :170]
    reward(row(), truth, TOKENIZER)
    times = []
    for _ in range(20):
        start = time.process_time()
        reward(row(), truth, TOKENIZER)
        times.append(time.process_time() - start)
    assert sorted(times)[10] < 2e-3


def test_boxes() -> None:
    assert box_around(square(30)) == (0.5, 0.5, 0.4, 0.4)
    assert box_iou((0.5, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.4)) == pytest.approx(0.12 / 0.20)
    assert box_iou((0.5, 0.5, 0.4, 0.4), (0.1, 0.5, 0.2, 0.4)) == 0.0
    assert reward(row(), square(30), TOKENIZER).box_iou == pytest.approx(1.0)
    assert reward(row("M 0 0 L 960 960 z"), square(40), TOKENIZER).box_iou == pytest.approx(0.6)
    assert reward(row(absent=True), square(30), TOKENIZER).box_iou == 0.0
