"""Rasterise, clean, trace and encode against slow and obvious references."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from wordmask.model.decoding.path_tokens import format_number, parse_path
from wordmask.model.masks import rle
from wordmask.model.masks.cleanup import clean, crop_xyxy
from wordmask.model.masks.flatten import flatten
from wordmask.model.masks.rasterize import SUB, rasterize, rasterize_pixels
from wordmask.model.masks.trace import scale_path, trace

masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
quick = settings(derandomize=True, deadline=None, max_examples=80)
WHOLE = (0.5, 0.5, 1.0, 1.0)


def blobs(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A mask of a few smooth pieces, as models draw them."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((height, width)), (0, 0), 2)
    return (noise > np.median(noise)).astype(np.uint8)


# --- RLE


@given(masks)
@quick
def test_rle_is_what_pycocotools_writes(mask: np.ndarray) -> None:
    expected = coco.encode(np.asfortranarray(mask))
    found = rle.encode(mask)
    assert (found["size"], found["counts"]) == (expected["size"], expected["counts"].decode())
    np.testing.assert_array_equal(rle.decode(found), mask)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((3, 5), np.uint8),
        np.ones((3, 5), np.uint8),
        np.eye(4, dtype=np.uint8),
        np.ones((900, 700), np.uint8),
    ],
)
def test_rle_of_extremes(mask: np.ndarray) -> None:
    assert rle.encode(mask)["counts"] == coco.encode(np.asfortranarray(mask))["counts"].decode()


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [3, 3], "counts": "4"},
        {"size": [3, 3], "counts": ""},
        {"size": [3], "counts": "9"},
        {"size": [3, 3], "counts": b"9"},
        {},
    ],
)
def test_rle_that_does_not_fit_is_an_error(broken: dict) -> None:
    with pytest.raises(ValueError, match=r"rle\."):
        rle.validate(broken)


# --- trace


@given(masks)
@quick
def test_traced_path_fills_back_exactly(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(rasterize_pixels(trace(mask), *mask.shape), mask)


@given(masks.filter(lambda mask: mask.any()))
@quick
def test_scaled_path_fills_back_exactly(mask: np.ndarray) -> None:
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(mask)
    box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    np.testing.assert_array_equal(
        rasterize(scale_path(trace(mask), (x, y, w, h)), box, height, width), mask
    )


def test_trace_is_readable() -> None:
    mask = np.zeros((5, 6), np.uint8)
    mask[1:4, 2:5] = 1
    assert trace(mask) == "M 2 1 h 3 v 3 h -3 z"
    assert trace(np.zeros((3, 3), np.uint8)) == scale_path("", (0, 0, 1, 1)) == ""


# --- rasterise


def covered(path: str, height: int, width: int) -> np.ndarray:
    """Set pixels of which more than half of 64 test points lie inside.

    Winding numbers are counted edge by edge.
    """
    counts = np.zeros((height, width), int)
    for y in range(height * SUB):
        for x in range(width * SUB):
            px, py, winding = (x + 0.5) / SUB, (y + 0.5) / SUB, 0
            for outline in flatten(path, 0.01):
                for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
                    if (y0 <= py) != (y1 <= py) and x0 + (py - y0) * (x1 - x0) / (y1 - y0) < px:
                        winding += 1 if y1 > y0 else -1
            counts[y // SUB, x // SUB] += winding != 0
    return counts


@pytest.mark.parametrize(
    "path",
    [
        "M 1.3 0.7 L 6.1 2.2 3.4 6.6 z",
        "M -2 1 L 5 1 5 9 z",
        "M 0 0 h 6 v 6 h -6 z M 2 2 v 2 h 2 v -2 z",
        "M 1 5 C 2 -3 5 -2 6.5 5.5 z",
    ],
)
def test_fill_counts_test_points(path: str) -> None:
    counts, found = covered(path, 7, 7), rasterize_pixels(path, 7, 7)
    half = SUB * SUB // 2
    np.testing.assert_array_equal(found[counts > half], 1)
    np.testing.assert_array_equal(found[counts < half], 0)


def test_an_edge_on_the_half_pixel_does_not_count() -> None:
    """Exactly half covered is not over one half."""
    np.testing.assert_array_equal(
        rasterize_pixels("M 0 0 h 2.5 v 3 h -2.5 z", 3, 4), [[1, 1, 0, 0]] * 3
    )
    np.testing.assert_array_equal(
        rasterize_pixels("M 0 0.5 h 4 v 2 h -4 z", 3, 4), [[0] * 4, [1] * 4, [0] * 4]
    )


def test_open_subpaths_are_closed_and_everything_is_clipped_to_the_image_only() -> None:
    box = (0.5, 0.5, 0.5, 0.5)
    np.testing.assert_array_equal(
        rasterize("M 0 0 L 1 0 1 1 0 1", box, 8, 8), rasterize("M 0 0 L 1 0 1 1 0 1 z", box, 8, 8)
    )
    assert rasterize("M -9 -9 L 9 -9 9 9 -9 9 z", box, 8, 8).all()
    assert not rasterize("M 2 2 L 3 2 3 3 z", box, 8, 8).any()
    assert rasterize("M 0 0 L 1 0 1 1 0 1 z", (1.0, 1.0, 1.0, 1.0), 8, 8)[4:, 4:].all()


def test_nonzero_rule() -> None:
    same = "M 0 0 h 6 v 6 h -6 z M 2 2 h 2 v 2 h -2 z"
    opposite = "M 0 0 h 6 v 6 h -6 z M 2 2 v 2 h 2 v -2 z"
    assert rasterize_pixels(same, 6, 6).sum() == 36
    assert rasterize_pixels(opposite, 6, 6).sum() == 32


def test_huge_coordinates_end_and_wrong_ones_are_errors() -> None:
    assert rasterize_pixels("M -1e12 -1e12 L 1e12 -1e12 1e12 1e12 -1e12 1e12 z", 6, 6).all()
    for path in (
        "L 1 2",
        "M 1",
        "M 1 2 A 3 4",
        "M 1 2 L 3",
        "M 0 0 L 1e999 0 1 1 z",
        "M 1 2 z 5",
        "hello",
        "5 M 1 2",
    ):
        with pytest.raises(ValueError, match="path"):
            rasterize_pixels(path, 4, 4)
    with pytest.raises(ValueError, match="bbox"):
        rasterize("M 0 0 L 1 0 1 1 z", (float("nan"), 0.5, 1, 1), 4, 4)


# --- clean


def cleaned(mask: np.ndarray, area_fraction: float) -> np.ndarray:
    """Holes, islands and close on the whole image, component by component."""
    limit, mask = area_fraction * mask.size, mask.copy()
    for value in (0, 1):
        count, labels = cv2.connectedComponents((mask == value).astype(np.uint8), connectivity=8)
        areas = {label: int((labels == label).sum()) for label in range(1, count)}
        small = [label for label, area in areas.items() if area < limit]
        if value == 1 and small and len(small) == len(areas):
            small.remove(max(areas, key=lambda label: areas[label]))
        for label in small:
            mask[labels == label] = 1 - value
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))


@given(masks.filter(lambda mask: mask.any()), st.sampled_from([0.0015, 0.02, 0.1, 0.5]))
@quick
def test_clean_equals_the_whole_image_done_slowly(mask: np.ndarray, area_fraction: float) -> None:
    np.testing.assert_array_equal(
        clean(mask, area_fraction=area_fraction), cleaned(mask, area_fraction)
    )


@pytest.mark.parametrize("seed", range(12))
def test_clean_equals_on_smooth_masks_away_from_the_border(seed: int) -> None:
    mask = np.zeros((120, 140), np.uint8)
    mask[30:70, 50:98] = blobs(seed)
    for area_fraction in (0.0015, 0.01):
        np.testing.assert_array_equal(
            clean(mask, area_fraction=area_fraction), cleaned(mask, area_fraction)
        )


def test_clean_at_its_limits() -> None:
    assert not clean(np.zeros((10, 10), np.uint8)).any()
    small = np.zeros((100, 100), np.uint8)
    small[10, 10], small[50:53, 50] = 1, 1
    kept = clean(small, area_fraction=0.01)
    assert (kept.sum(), kept[50:53, 50].sum()) == (3, 3), "all islands are small: the largest stays"
    exact = np.zeros((100, 100), np.uint8)
    exact[10:20, 10:20], exact[50:55, 50:53] = 1, 1
    assert clean(exact, area_fraction=0.0015).sum() == 115, (
        "smaller is strict: 15 of 10,000 pixels stay at 0.15 %"
    )
    assert clean(exact, area_fraction=0.0016).sum() == 100


def test_refiner_crop_is_clipped() -> None:
    assert crop_xyxy((0.0, 0.0, 1.0, 1.0), 10, 20) == (0, 0, 20, 10)
    assert crop_xyxy((0.25, 0.25, 0.75, 0.75), 100, 200) == (25, 12, 175, 87)


# --- path tokens


def test_incomplete_commands_are_reported_and_the_whole_ones_salvaged() -> None:
    parsed = parse_path(["M", "0", "0", "L", "960", "0", "C", "1", "2", "3"])
    assert (parsed.path, parsed.well_formed, parsed.n_commands) == ("M 0 0 L 1 0", False, 2)
    assert "token 6" in str(parsed.problem)
    odd = parse_path(["M", "0", "0", "L", "960", "0", "960"])
    assert (odd.path, odd.well_formed) == ("M 0 0 L 1 0", False)


@pytest.mark.parametrize(
    ("tokens", "path"),
    [
        (["M", "0", "0", "H", "9"], "M 0 0"),
        (["M", "0", "0", "z", "5"], "M 0 0 z"),
        (["M", "0", "0", "L", "961", "0"], "M 0 0"),
        (["L", "1", "2"], ""),
        (["z"], ""),
        (["M"], ""),
        (["M", "1", "2"], "M 0.001 0.002"),
        (["5", "M"], ""),
        (["M", "1", "-"], ""),
        (["M", "1", "2", "-", "z"], "M 0.001 0.002"),
    ],
)
def test_malformed_paths(tokens: list[str], path: str) -> None:
    parsed = parse_path(tokens)
    assert not parsed.well_formed
    assert parsed.path == path
    assert parsed.problem


def test_repeated_arguments_are_kept_as_written() -> None:
    assert (
        parse_path(["M", "0", "0", "L", "960", "0", "960", "960", "z"]).path == "M 0 0 L 1 0 1 1 z"
    )


@given(st.lists(st.sampled_from([*"MLCzmlcZ", "-", "0", "5", "960", "961", "x", ""]), max_size=20))
@quick
def test_whatever_was_decoded_is_parsed_and_can_be_filled(tokens: list[str]) -> None:
    parsed = parse_path(tokens)
    if parsed.path:
        rasterize(parsed.path, WHOLE, 6, 6)
    assert parsed.well_formed == (parsed.problem is None)


def test_numbers() -> None:
    assert [format_number(n) for n in (0, 1, 0.5, -0.0001, 0.12345, -0.003, 10.25)] == [
        "0",
        "1",
        "0.5",
        "0",
        "0.123",
        "-0.003",
        "10.25",
    ]
