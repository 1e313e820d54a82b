"""Backgrounds of scenes: gradients, stripes, checks, blobs, grain and blurred clutter."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

CLUTTER_STEP = 4  # pixels of the image to one of clutter
CLUTTER_SHARE = 0.25  # of backgrounds
KINDS = ("gradient", "stripes", "checks", "blobs", "grain")


def draw_background(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw a background of any brightness, float32 (3, H, W) in 0..255."""
    base = rng.uniform(30, 225)
    first = _tint(rng, base)
    second = _tint(rng, base)
    if rng.random() < CLUTTER_SHARE:
        return _clutter(rng, (height, width), first, second)
    pattern_HW = _pattern(rng, height, width)
    low_311 = first[:, None, None]
    high_311 = second[:, None, None]
    return low_311 + (high_311 - low_311) * pattern_HW


def _tint(rng: Generator, base: float) -> np.ndarray:
    tint = base + rng.uniform(-35, 35, 3)
    tint += rng.uniform(-25, 25)
    return tint.astype(np.float32)


def _pattern(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw a pattern, float32 (H, W) in 0..1, as coarse as the image is large."""
    scale = min(height, width) / 120
    angle = rng.uniform(0, np.pi)
    period = scale * rng.uniform(8, 40)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    kind = KINDS[rng.integers(len(KINDS))]
    if kind == "checks":
        checks = x // period + y // period
        return checks.astype(np.float32) % 2
    if kind == "blobs":
        return _blobs(rng, height, width)
    if kind == "grain":
        grain = max(1, round(3 * scale))
        return _grain(rng, height, width, grain)
    along = x * np.float32(np.cos(angle))
    along = along + y * np.float32(np.sin(angle))
    if kind == "gradient":
        return (along - along.min()) / np.ptp(along)
    frequency = np.float32(2 * np.pi / period)
    return 0.5 + 0.5 * np.sin(frequency * along)


def _blobs(rng: Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.random((6, 6), dtype=np.float32)
    size = (width, height)
    blobs = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs, 0, 1)


def _grain(rng: Generator, height: int, width: int, grain: int) -> np.ndarray:
    """Draw noise with grains of so many pixels."""
    shape = (height // grain + 1, width // grain + 1)
    noise = rng.random(shape, dtype=np.float32)
    size = (width, height)
    return cv2.resize(noise, size, interpolation=cv2.INTER_LINEAR)


def _clutter(
    rng: Generator, shape: tuple[int, int], first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Draw things far out of focus: none has an outline, so no expression could name one."""
    height, width = shape
    h = height // CLUTTER_STEP + 1
    w = width // CLUTTER_STEP + 1
    small_hw3 = np.empty((h, w, 3), np.float32)
    small_hw3[:] = first
    for _ in range(rng.integers(8, 20)):
        _draw_ellipse(rng, small_hw3, second)
    blur = max(1.5, 0.045 * min(h, w))
    blurred = cv2.GaussianBlur(small_hw3, (0, 0), blur)
    size = (width, height)
    image_HW3 = cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(image_HW3.transpose(2, 0, 1))


def _draw_ellipse(rng: Generator, image_HW3: np.ndarray, tint: np.ndarray) -> None:
    height, width, _ = image_HW3.shape
    x = _draw_int(rng, 0, width)
    y = _draw_int(rng, 0, height)
    half_width = _draw_int(rng, 2, max(3, width // 3))
    half_height = _draw_int(rng, 2, max(3, height // 3))
    colour = tint + rng.uniform(-30, 30, 3)
    turn = rng.uniform(0, 180)
    ellipse = ((x, y), (half_width, half_height), turn, 0, 360)
    cv2.ellipse(image_HW3, *ellipse, colour.tolist(), cv2.FILLED)


def _draw_int(rng: Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high))
