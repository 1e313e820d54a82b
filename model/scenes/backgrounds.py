"""Backgrounds of scenes: gradients, stripes, checks, blobs, grain and blurred clutter."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

CLUTTER_STEP = 4  # pixels of the image to one of clutter
CLUTTER_SHARE = 0.25  # of backgrounds
CHECKS, BLOBS = 2, 3  # kinds of pattern; 0 is a gradient, 1 stripes, and 4 grain


def draw_background(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw a background of any brightness, float32 (3, H, W) in 0..255."""
    base = rng.uniform(30, 225)
    first = _tint(rng, base)
    second = _tint(rng, base)
    if rng.random() < CLUTTER_SHARE:
        return _clutter(rng, height, width, first, second)
    pattern_HW = _pattern(rng, height, width)
    return first[:, None, None] + (second - first)[:, None, None] * pattern_HW


def _tint(rng: Generator, base: float) -> np.ndarray:
    tint = base + rng.uniform(-35, 35, 3) + rng.uniform(-25, 25)
    return tint.astype(np.float32)


def _pattern(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw a pattern, float32 (H, W) in 0..1, as coarse as the image is large."""
    scale = min(height, width) / 120
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(8, 40) * scale
    kind = rng.integers(0, 5)
    if kind < CHECKS:
        return _waves(height, width, angle, None if kind == 0 else period)
    if kind == CHECKS:
        y, x = _grid(height, width)
        return (x // period + y // period).astype(np.float32) % 2
    if kind == BLOBS:
        coarse = rng.random((6, 6), dtype=np.float32)
        blobs = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.clip(blobs, 0, 1)
    grain = max(1, round(3 * scale))
    fine = rng.random((height // grain + 1, width // grain + 1), dtype=np.float32)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)


def _waves(height: int, width: int, angle: float, period: float | None) -> np.ndarray:
    """Return stripes of a period in pixels across a direction; a gradient for None."""
    y, x = _grid(height, width)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if period is None:
        return (along - along.min()) / np.ptp(along)
    return 0.5 + 0.5 * np.sin(np.float32(2 * np.pi / period) * along)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    return y, x


def _clutter(
    rng: Generator, height: int, width: int, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Draw things far out of focus: none has an outline, so no expression could name one."""
    h = height // CLUTTER_STEP + 1
    w = width // CLUTTER_STEP + 1
    small = np.broadcast_to(first, (h, w, 3)).copy()
    for _ in range(int(rng.integers(8, 20))):
        centre = (int(rng.integers(0, w)), int(rng.integers(0, h)))
        axes = (int(rng.integers(2, max(3, w // 3))), int(rng.integers(2, max(3, h // 3))))
        colour = (second + rng.uniform(-30, 30, 3)).tolist()
        turn = float(rng.uniform(0, 180))
        cv2.ellipse(small, centre, axes, turn, 0, 360, colour, cv2.FILLED)
    blurred = cv2.GaussianBlur(small, (0, 0), max(1.5, 0.045 * min(h, w)))
    full = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(full.transpose(2, 0, 1))
