"""Rasterising: every pixel counted by itself, and numbers no image is large enough for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wordmask.model.masks.rasterize import rasterize, rasterize_pixels

quick = settings(derandomize=True, deadline=None, max_examples=60)
SIDE = 5
Points = list[tuple[float, float]]
quarters = st.integers(-8, 4 * SIDE + 8).map(lambda n: n / 4)  # many fall on half pixels
hundredths = st.integers(-200, 100 * SIDE + 200).map(lambda n: n / 100)
polygons = st.sampled_from([quarters, hundredths]).flatmap(
    lambda number: st.lists(st.tuples(number, number), min_size=3, max_size=7)
)
SQUARE = "M 0 0 L 1 0 1 1 0 1 z"
CIRCLE = "M 0 0.5 C 0 0.2 0.2 0 0.5 0 C 0.8 0 1 0.2 1 0.5 C 1 0.8 0.8 1 0.5 1 C 0.2 1 0 0.8 0 0.5 z"


def path_of(points: Points) -> str:
    return "M " + " L ".join(f"{x} {y}" for x, y in points) + " z"


def winding(points: Points, px: float, py: float) -> int:
    """Count the edges crossed on the way in from the left.

    The arithmetic is that of the code under test, as points may lie on an edge.
    """
    total = 0
    for start, end in zip(points, points[1:] + points[:1], strict=True):
        (x0, y0), (x1, y1) = sorted((start, end), key=lambda point: point[1])
        if y0 <= py < y1 and x0 + (py - y0) * ((x1 - x0) / (y1 - y0)) <= px:
            total += 1 if start == (x0, y0) else -1
    return total


def cell_alpha(points: Points, column: int, row: int) -> int:
    """Return the alpha, of 255, of the reference's pixel, which is half a pixel of ours wide.

    It has 4 x 4 points of 16, but 63 for a whole fourth row.
    """
    alpha = 0
    for j in range(4):
        inside = sum(
            winding(points, (column + (i + 0.5) / 4) / 2, (row + (j + 0.5) / 4) / 2) != 0
            for i in range(4)
        )
        alpha += 63 if inside == 4 and j == 3 else 16 * inside
    return alpha


@given(polygons)
@quick
def test_every_pixel_is_its_four_cells_over_one_half(points: Points) -> None:
    alpha = np.array(
        [[cell_alpha(points, column, row) for column in range(2 * SIDE)] for row in range(2 * SIDE)]
    )
    expected = alpha.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3)) > 255 / 2
    np.testing.assert_array_equal(rasterize_pixels(path_of(points), SIDE, SIDE), expected)


@given(polygons, st.integers(0, 6), st.integers(0, 6))
@quick
def test_a_larger_image_only_shows_more_of_the_path(points: Points, right: int, down: int) -> None:
    larger = rasterize_pixels(path_of(points), SIDE + down, SIDE + right)
    np.testing.assert_array_equal(
        larger[:SIDE, :SIDE], rasterize_pixels(path_of(points), SIDE, SIDE)
    )


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=12, max_size=12),
    st.sampled_from(["L", "l", "C", "c", "M", "m"]),
)
@quick
def test_any_finite_numbers_can_be_filled(numbers: list[float], letter: str) -> None:
    path = f"M 0 0 {letter} " + " ".join(map(repr, numbers)) + " z"
    for mask in (
        rasterize_pixels(path, 6, 7),
        rasterize(path, (0.5, 0.5, 1.0, 1.0), 6, 7),
        rasterize(SQUARE, tuple(numbers[:4]), 6, 7),
    ):
        assert mask.shape == (6, 7)
        assert set(np.unique(mask)) <= {0, 1}


def test_relative_moves_beyond_all_numbers_are_clipped() -> None:
    """Their sum overflows.

    Without clipping, infinite numbers reached the compiled code, which wrote outside its arrays.
    """
    sums = "m 0 0 l 1e308 0 l 1e308 0 l 0 1e308 l 0 1e308 l -1e308 0 l -1e308 0 z"
    assert rasterize_pixels(sums, 6, 6).all()
    assert rasterize(sums, (0.5, 0.5, 1.0, 1.0), 6, 6)[3:, 3:].all()
    assert rasterize(SQUARE, (0.5, 0.5, 1e308, 1e308), 6, 6).all()


def test_a_mirrored_box_keeps_its_curves() -> None:
    circle = rasterize(CIRCLE, (0.5, 0.5, 1.0, 1.0), 64, 64)
    mirrored = rasterize(CIRCLE, (0.5, 0.5, -1.0, -1.0), 64, 64)
    assert (circle != mirrored).sum() <= 8


@pytest.mark.parametrize(
    "path",
    [
        "z",
        "z M 0 0 L 1 0 1 1",
        "H 3 V 4 z",
        "M 0 0 L 1 0 1 1 Q 1 2 3 4",
        "M 0 0 L nan 0 1 1",
        "M 0 0 L 1 0 1 1 -",
    ],
)
def test_text_that_is_no_path_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        rasterize_pixels(path, 4, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_a_box_that_is_not_finite_is_an_error(place: int, value: float) -> None:
    box = [0.5, 0.5, 1.0, 1.0]
    box[place] = value
    with pytest.raises(ValueError, match="bbox"):
        rasterize(SQUARE, tuple(box), 4, 4)
