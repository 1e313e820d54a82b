"""Outlines as curves, by either library: what is filled again is much the same mask."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wordmask.model.masks import smooth as mask_smooth
from wordmask.model.masks.rasterize import rasterize, rasterize_pixels
from wordmask.model.masks.smooth import smooth_tracer
from wordmask.model.masks.trace import scale_path, trace

TRACERS = {"vtracer": mask_smooth._vtracer, "potrace": mask_smooth._potrace}
both = pytest.mark.parametrize("library", list(TRACERS))


def smooth(mask: np.ndarray, library: str) -> str:
    return mask_smooth._trace_framed(TRACERS[library], mask)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def ring(height: int = 90, width: int = 120) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (60, 45), (40, 30), 20, 0, 360, 1, -1)
    cv2.circle(mask, (60, 45), 12, 0, -1)
    return mask


@both
def test_a_ring_keeps_its_hole_and_is_shorter_than_exact(library: str) -> None:
    mask = ring()
    path = smooth(mask, library)
    filled = rasterize_pixels(path, *mask.shape)
    assert iou(filled, mask) > 0.95
    assert not filled[45, 60]
    assert path.count("M") == 2
    assert set(path) <= set("MLCz0123456789.- ")
    assert len(path) < len(trace(mask))


@both
def test_masks_at_the_border_and_whole_images(library: str) -> None:
    half = np.zeros((60, 60), np.uint8)
    half[:30] = 1
    for mask in (half, np.ones((40, 50), np.uint8), np.pad(ring(), ((0, 0), (0, 1)))[40:, 20:]):
        assert iou(rasterize_pixels(smooth(mask, library), *mask.shape), mask) > 0.95


@both
def test_an_empty_mask_has_no_path_and_a_speck_its_exact_outline(library: str) -> None:
    assert smooth(np.zeros((5, 5), np.uint8), library) == ""
    speck = np.zeros((9, 9), np.uint8)
    speck[4, 6] = 1
    assert smooth(speck, library), "something is left of the smallest mask"


@both
@given(st.integers(0, 10_000))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_any_mask_gives_a_path_that_can_be_filled(library: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = (cv2.GaussianBlur(generator.random((40, 50)), (0, 0), 1 + seed % 4) > 0.5).astype(
        np.uint8
    )
    assert iou(rasterize_pixels(smooth(mask, library), *mask.shape), mask) > 0.6


@both
def test_in_unit_of_its_box_it_fills_the_same(library: str) -> None:
    mask = ring()
    x, y, w, h = cv2.boundingRect(mask)
    path = smooth(mask, library)
    height, width = mask.shape
    scaled = rasterize(
        scale_path(path, (x, y, w, h)),
        ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height),
        height,
        width,
    )
    assert iou(scaled, rasterize_pixels(path, height, width)) > 0.995


def test_photographs_objects_are_much_the_same(coco100: Path) -> None:
    """The mean IoU of the round trip; platform notes measured 0.957."""
    document = json.loads((coco100 / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    found = []
    for annotation in [a for a in document["annotations"] if isinstance(a["segmentation"], list)][
        :120
    ]:
        height, width = sizes[annotation["image_id"]]
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(
            mask,
            [
                np.array(polygon).reshape(-1, 2).round().astype(np.int32)
                for polygon in annotation["segmentation"]
            ],
            1,
        )
        if mask.any():
            found.append(iou(rasterize_pixels(smooth(mask, "vtracer"), height, width), mask))
    print(f"{len(found)} masks, mean IoU {np.mean(found):.4f}, least {min(found):.3f}")
    assert np.mean(found) > 0.93


def test_without_a_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"path_style = smooth.*pip install 'wordmask\[smooth\]'"):
        smooth_tracer()
