"""Targets of the decoder: paths that fill to the mask."""

from __future__ import annotations

import numpy as np

from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.scenes.canvas import unit_box
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.train.targets import path_target


def test_targets_of_the_decoder_draw_the_mask() -> None:
    """Well-formed paths, within 16 vertices, that fill to nearly the mask."""
    overlaps = []
    for seed in range(40):
        scene = SceneDataset("shipped").scene(seed)
        for thing in scene.objects:
            tokens = path_target(thing.mask_HW, thing.box)
            path = parse_path(tokens)
            assert path.well_formed, tokens
            assert len(tokens) <= 2 * 16 + 3 * tokens.count("M")
            height, width = thing.mask_HW.shape
            drawn = rasterize(path.path, unit_box(thing.box, height, width), height, width)
            overlaps.append((drawn & thing.mask_HW).sum() / (drawn | thing.mask_HW).sum())
    assert np.mean(overlaps) > 0.9
    assert np.percentile(overlaps, 5) > 0.6, (
        "a few thin things, as bicycles, take more than the budget of tokens"
    )
