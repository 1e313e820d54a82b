"""Crops beyond the golden ones: middle tiles, 1 x 1 tilings, extreme sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wordmask.model.nn.config import VisionConfig
from wordmask.model.nn.image_crops import crop_image, normalise, select_tiling

CONFIG = VisionConfig()
WINDOW, MARGIN, CROP = 266, 56, 378


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_sizes_are_those_of_the_paper():
    assert (CONFIG.grid, CONFIG.n_tokens, CONFIG.margin_px, CONFIG.window_px) == (
        27,
        729,
        MARGIN,
        WINDOW,
    )


@pytest.mark.parametrize(
    ("height", "width", "tiling"), [(900, 1170, (3, 4)), (1170, 900, (4, 3)), (700, 2000, (2, 5))]
)
def test_every_tile_is_its_window_of_the_resized_image(height, width, tiling):
    image = noise(height, width)
    crops = crop_image(image, CONFIG)
    rows, cols = crops.tiling
    assert crops.tiling == tiling
    whole = Image.fromarray(image).resize(
        (cols * WINDOW + 112, rows * WINDOW + 112), Image.Resampling.LANCZOS
    )
    tiles = crops.crops_NHWC[1:].reshape(rows, cols, CROP, CROP, 3)
    for row in range(rows):
        for col in range(cols):
            x, y = col * WINDOW, row * WINDOW
            expected = np.asarray(whole.crop((x, y, x + CROP, y + CROP)))
            np.testing.assert_array_equal(tiles[row, col], expected)


def test_middle_tiles_share_both_margins_with_their_neighbours():
    tiles = crop_image(noise(1000, 1000), CONFIG).crops_NHWC[1:].reshape(3, 3, CROP, CROP, 3)
    overlap = 2 * MARGIN
    middle = tiles[1, 1]
    np.testing.assert_array_equal(middle[:, :overlap], tiles[1, 0][:, -overlap:])
    np.testing.assert_array_equal(middle[:, -overlap:], tiles[1, 2][:, :overlap])
    np.testing.assert_array_equal(middle[:overlap], tiles[0, 1][-overlap:])
    np.testing.assert_array_equal(middle[-overlap:], tiles[2, 1][:overlap])


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (378, 378), (100, 3000), (3000, 100), (379, 378), (200, 500)]
)
def test_with_one_tile_the_tile_is_the_whole(height, width):
    image = noise(height, width)
    crops = crop_image(image, CONFIG)
    assert crops.tiling == (1, 1)
    # What the only tile would be: the image resized to one window and both margins.
    tile = Image.fromarray(image).resize(
        (WINDOW + 2 * MARGIN, WINDOW + 2 * MARGIN), Image.Resampling.LANCZOS
    )
    assert len(crops.crops_NHWC) == 1
    np.testing.assert_array_equal(crops.crops_NHWC[0], np.asarray(tile))


@given(st.integers(-200, 5000), st.integers(-200, 5000))
def test_tilings_of_any_size(height, width):
    rows, cols = select_tiling(height, width, WINDOW, 12)
    assert rows >= 1
    assert cols >= 1
    if height <= WINDOW or width <= WINDOW:
        assert (rows, cols) == (1, 1)
    elif max(height, width) < 36 * min(height, width):
        assert rows * cols <= 12
    # As a set: where a square grid is cut to 12 tiles, rows are cut, however the image is turned.
    assert sorted(select_tiling(width, height, WINDOW, 12)) == sorted((rows, cols))


def test_very_long_images_have_more_tiles_than_twelve():
    """The published formula scales both counts down and then raises the smaller one to 1.

    We follow it, as the model was trained so.
    """
    assert select_tiling(400, 13_300, WINDOW, 12) == (1, 17)


def test_a_side_of_one_window_has_one_tile_and_a_pixel_more_has_several():
    assert select_tiling(WINDOW, 10 * WINDOW, WINDOW, 12) == (1, 1)
    assert select_tiling(WINDOW + 1, WINDOW + 1, WINDOW, 12) == (3, 3)


def test_normalised_values_and_layout():
    crops = np.zeros((2, 4, 4, 3), np.uint8)
    crops[1, 2, 3] = (0, 255, 51)
    found = normalise(crops, torch.device("cpu"), torch.float32)
    assert found.shape == (2, 3, 4, 4)
    assert found[0].eq(-1).all()
    torch.testing.assert_close(found[1, :, 2, 3], torch.tensor([-1.0, 1.0, -0.6]))
    assert normalise(crops, torch.device("cpu"), torch.bfloat16).dtype == torch.bfloat16


def test_a_view_that_is_not_contiguous_can_be_normalised():
    crops = noise(8, 8)[None, ::-1, ::-2]
    found = normalise(crops, torch.device("cpu"), torch.float32)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), crops[0] / 127.5 - 1, atol=1e-6)
