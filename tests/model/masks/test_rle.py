"""RLE text, byte for byte: against runs counted pixel by pixel, and against pycocotools."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from wordmask.model.masks import rle

quick = settings(derandomize=True, deadline=None, max_examples=60)
masks = st.tuples(st.integers(1, 16), st.integers(1, 16)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def runs(mask: np.ndarray) -> list[int]:
    """Down the columns, zeros first."""
    pixels = [int(mask[y, x]) for x in range(mask.shape[1]) for y in range(mask.shape[0])]
    counts = [len(list(run)) for _, run in groupby(pixels)]
    return [0, *counts] if pixels[0] else counts


def text_of(counts: list[int]) -> str:
    """Compress counts: from the fourth on, each less the one before the last.

    A character has five bits, low ones first.
    """
    text = ""
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            bits, value = value % 32, value // 32
            more = not ((value == 0 and bits < 16) or (value == -1 and bits >= 16))
            text += chr(48 + bits + 32 * more)
    return text


def pycocotools_counts(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask))["counts"].decode()


@given(masks)
@quick
def test_counts_are_the_runs_of_the_columns(mask: np.ndarray) -> None:
    assert rle.encode(mask) == {"size": list(mask.shape), "counts": text_of(runs(mask))}


@given(st.integers(1, 300), st.integers(1, 300), st.data())
@quick
def test_a_box_anywhere_in_a_larger_image(height: int, width: int, data: st.DataObject) -> None:
    """At the image's sides runs go on into the next column or end with the last pixel."""
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    found = rle.encode(mask)
    assert found["counts"] == pycocotools_counts(mask)
    np.testing.assert_array_equal(rle.decode(found), mask)


@pytest.mark.parametrize("pixel", [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3)])
def test_one_pixel(pixel: tuple[int, int]) -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[pixel] = 1
    for either in (mask, 1 - mask):
        assert rle.encode(either)["counts"] == pycocotools_counts(either)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2000, 1500)])
def test_empty_and_full(shape: tuple[int, int]) -> None:
    for value in (0, 1):
        mask = np.full(shape, value, np.uint8)
        assert rle.encode(mask)["counts"] == pycocotools_counts(mask)


def test_masks_that_are_no_block_of_memory() -> None:
    mask = (np.random.default_rng(0).random((40, 60)) > 0.5).astype(np.uint8)
    for view in (mask[::2, 1::3], mask.T, mask[::-1]):
        assert rle.encode(view)["counts"] == pycocotools_counts(view)


@given(masks)
@quick
def test_text_that_is_cut_off_is_an_error(mask: np.ndarray) -> None:
    found = rle.encode(mask)
    rle.validate(found)
    with pytest.raises(ValueError, match=r"rle\.counts"):
        rle.validate(rle.Rle(size=found["size"], counts=found["counts"][:-1]))


@pytest.mark.parametrize(
    ("size", "counts", "what"),
    [
        ([2, 2], "5", "add up to 5"),
        ([2, 2], "4P", "ends within"),
        ([2, 2], "4 ", "no RLE text"),
        ([2, 2], "o" * 9, "ends within"),
        ([2, 2], "N6", "negative"),
        ([2**16, 2**16], "4", "32-bit"),
        ([-1, 2], "0", "size"),
        ([2.0, 2], "4", "size"),
        ([2, 2], "4é", "ASCII"),
    ],
)
def test_errors_say_what_is_wrong(size: list[int], counts: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        rle.decode(rle.Rle(size=size, counts=counts))
