"""Cleaning on the mask's own box equals cleaning the whole image, by flood fill, pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wordmask.model.masks.cleanup import clean

quick = settings(derandomize=True, deadline=None, max_examples=60)
Pixel = tuple[int, int]
bits = st.integers(0, 1)


def inside(shape: tuple[int, ...], y: int, x: int) -> list[Pixel]:
    """A pixel and its neighbours, as far as the image has them."""
    return [
        (j, i)
        for j in range(y - 1, y + 2)
        for i in range(x - 1, x + 2)
        if 0 <= j < shape[0] and 0 <= i < shape[1]
    ]


def components(mask: np.ndarray, value: int) -> list[set[Pixel]]:
    unseen = {(int(y), int(x)) for y, x in np.argwhere(mask == value)}
    found = []
    while unseen:
        reached, border = set(), [unseen.pop()]
        while border:
            pixel = border.pop()
            reached.add(pixel)
            neighbours = unseen.intersection(inside(mask.shape, *pixel))
            unseen -= neighbours
            border += neighbours
        found.append(reached)
    return found


def paint(mask: np.ndarray, pixels: set[Pixel], value: int) -> None:
    for pixel in pixels:
        mask[pixel] = value


def cleaned(mask: np.ndarray, limit: float) -> np.ndarray:
    mask = mask.copy()
    for hole in components(mask, 0):
        if len(hole) < limit:
            paint(mask, hole, 1)
    islands = sorted(components(mask, 1), key=len, reverse=True)
    tied = len(islands) > 1 and len(islands[0]) == len(islands[1]) < limit
    assume(not tied)  # which of them stays is for another test
    for island in islands[1:]:
        if len(island) < limit:
            paint(mask, island, 0)
    for reduce in (max, min):  # dilate, erode: the 3 x 3 close
        before = mask.copy()
        for y, x in np.ndindex(mask.shape):
            mask[y, x] = reduce(before[pixel] for pixel in inside(mask.shape, y, x))
    return mask


@st.composite
def placed(draw: st.DrawFn) -> np.ndarray:
    """A patch of noise somewhere in an image: away from the borders, near them, or filling it."""
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    patch = draw(
        arrays(np.uint8, (draw(st.integers(1, height)), draw(st.integers(1, width))), elements=bits)
    )
    top, left = (
        draw(st.integers(0, height - patch.shape[0])),
        draw(st.integers(0, width - patch.shape[1])),
    )
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return mask


@given(placed(), st.sampled_from([0.0015, 0.02, 0.05, 0.2, 0.6]))
@quick
def test_clean_equals_a_flood_fill_of_the_whole_image(
    mask: np.ndarray, area_fraction: float
) -> None:
    assume(mask.any())
    before = mask.copy()
    np.testing.assert_array_equal(
        clean(mask, area_fraction=area_fraction), cleaned(mask, area_fraction * mask.size)
    )
    np.testing.assert_array_equal(mask, before)


def first_of_the_largest(mask: np.ndarray) -> np.ndarray:
    """As numbered in the whole image, and closed."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    kept = (labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
    return cv2.morphologyEx(kept, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))


@given(
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), min_size=2, max_size=6, unique=True)
)
@quick
def test_among_equal_islands_the_same_stays_as_in_the_whole_image(pixels: list[Pixel]) -> None:
    mask = np.zeros((40, 40), np.uint8)
    paint(mask, set(pixels), 1)
    np.testing.assert_array_equal(clean(mask, area_fraction=0.02), first_of_the_largest(mask))


def test_a_tie_does_not_depend_on_where_the_box_of_the_mask_begins() -> None:
    """By rows the right pixel comes first, by OpenCV's blocks of 2 x 2 the left one.

    The latter is so where both lie in one row of blocks.
    """
    for top, left in np.ndindex(6, 6):
        mask = np.zeros((40, 40), np.uint8)
        mask[10 + top, 20 + left] = mask[11 + top, 12 + left] = 1
        np.testing.assert_array_equal(clean(mask, area_fraction=0.02), first_of_the_largest(mask))


@pytest.mark.parametrize(("hole", "filled"), [(14, True), (15, False)])
def test_a_hole_exactly_at_the_limit_stays(hole: int, filled: bool) -> None:
    """0.15 % of 100 x 100 is 15 pixels, and smaller is strict.

    Holes one pixel wide would be closed: these are 5 high.
    """
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 20:60] = 1
    mask[30:35, 30:33] = 0
    if hole == 14:
        mask[30, 30] = 1
    assert clean(mask)[32, 31] == filled
    assert clean(mask).sum() == 1600 - (0 if filled else 15)


@pytest.mark.parametrize(("island", "stays"), [(14, False), (15, True)])
def test_an_island_exactly_at_the_limit_stays(island: int, stays: bool) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 20:60] = 1
    mask[80, 80 : 80 + island] = 1
    assert clean(mask).sum() == 1600 + (island if stays else 0)


def test_small_background_that_goes_on_outside_the_box_of_the_mask_is_filled() -> None:
    """The last 5 columns are 500 pixels: smaller than 6 % of the image, not smaller than 5 %."""
    mask = np.ones((100, 100), np.uint8)
    mask[:, 95:] = 0
    assert clean(mask, area_fraction=0.06).all()
    np.testing.assert_array_equal(clean(mask, area_fraction=0.05), mask)


def test_small_background_at_the_border_is_filled_too() -> None:
    mask = np.ones((100, 100), np.uint8)
    mask[:3, :4] = 0
    mask[:, 60:] = 0
    expected = np.zeros_like(mask)
    expected[:, :60] = 1
    np.testing.assert_array_equal(clean(mask), expected)


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_stay(value: int) -> None:
    np.testing.assert_array_equal(clean(np.full((20, 30), value, np.uint8)), value)
