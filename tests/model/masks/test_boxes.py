"""Boxes that leave the image, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.requests import Decoded
from wordmask.model.masks.boxes import Box, clip_box
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.stages import rasterize_coarse
from wordmask.model.train.rl.rewards import fill_rollout
from wordmask.model.train.small_model import small_tokenizer

CORNER = ["M", "0", "0", "L", "960", "0", "0", "960", "z"]
IMAGE = np.zeros((48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((0.0, 0.5, 0.5, 0.25), (0.125, 0.5, 0.25, 0.25)),
        ((0.75, 1.0, 1.0, 0.5), (0.625, 0.875, 0.75, 0.25)),
        ((0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0)),
        ((0.5, 0.5, 3.0, 0.5), (0.5, 0.5, 1.0, 0.5)),
        ((1.5, -1.0, 0.5, 0.5), (0.875, 0.125, 0.25, 0.25)),
    ],
)
def test_a_box_is_clipped_to_the_image(box: Box, clipped: Box) -> None:
    assert clip_box(box) == clipped


def test_a_box_in_the_image_keeps_its_numbers() -> None:
    box = (341 / 1023, 0.1, 2**-1.7, 2**-9.3)
    assert clip_box(box) == box


def test_the_path_fills_the_clipped_box_when_segmenting_and_when_training() -> None:
    tokenizer = small_tokenizer()
    row = Decoded(
        box=(0.0, 0.875, 0.5, 0.5),
        ids=tuple(tokenizer.path_ids(CORNER)),
        absent=False,
        truncated=False,
        path_logprob=None,
    )
    path = parse_path(CORNER)
    expected = rasterize(path.path, (0.125, 0.8125, 0.25, 0.375), 48, 64)
    np.testing.assert_array_equal(rasterize_coarse(row, path, IMAGE), expected)
    np.testing.assert_array_equal(fill_rollout(row, tokenizer, 48, 64), expected)
