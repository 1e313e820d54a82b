"""What scenes are drawn on."""

from __future__ import annotations

import cv2
import numpy as np

CLUTTER_STEP = 4  # pixels of the image to one of clutter


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Gradient, stripes, checker, blobs or grain, float32 (H, W) in 0..1, as coarse as the image is
    large.
    """
    scale = min(height, width) / 120
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40) * scale
    kind = rng.integers(0, 5)
    if kind < 2:
        along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        return (
            (along - along.min()) / np.ptp(along)
            if kind == 0
            else 0.5 + 0.5 * np.sin(np.float32(2 * np.pi / period) * along)
        )
    if kind == 2:
        return (x // period + y // period).astype(np.float32) % 2
    if kind == 3:
        return np.clip(
            cv2.resize(
                rng.random((6, 6), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
            ),
            0,
            1,
        )
    grain = max(1, round(3 * scale))
    fine = rng.random((height // grain + 1, width // grain + 1), dtype=np.float32)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)


def varied(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A background for sprites, of any brightness, float32 (3, H, W) in 0..255: gradient, stripes,
    blobs, grain or blurred clutter.
    """
    base = rng.uniform(30, 225)
    first, second = (
        (base + rng.uniform(-35, 35, 3) + rng.uniform(-25, 25)).astype(np.float32) for _ in range(2)
    )
    if rng.random() < 0.25:
        return _clutter(rng, height, width, first, second)
    return first[:, None, None] + (second - first)[:, None, None] * _pattern(rng, height, width)


def _clutter(
    rng: np.random.Generator, height: int, width: int, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Things far out of focus: nothing in it has an outline, so nothing in it could be asked
    for.
    """
    h, w = height // CLUTTER_STEP + 1, width // CLUTTER_STEP + 1
    small = np.broadcast_to(first, (h, w, 3)).copy()
    for _ in range(int(rng.integers(8, 20))):
        centre = (int(rng.integers(0, w)), int(rng.integers(0, h)))
        axes = (int(rng.integers(2, max(3, w // 3))), int(rng.integers(2, max(3, h // 3))))
        colour = second + rng.uniform(-30, 30, 3)
        cv2.ellipse(
            small, centre, axes, float(rng.uniform(0, 180)), 0, 360, tuple(colour.tolist()), -1
        )
    blurred = cv2.GaussianBlur(small, (0, 0), max(1.5, 0.045 * min(h, w)))
    full = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(full.transpose(2, 0, 1))
