"""Plain shapes in plain colours: their outlines, and their exact coverage of pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from wordmask.model.scenes.canvas import MARGIN

# OpenCV's half degrees.
HUE = {
    "red": 0,
    "green": 60,
    "blue": 114,
    "yellow": 29,
    "purple": 142,
    "orange": 14,
    "cyan": 91,
}
COLOURS = (*HUE, "white")
VALUE = (205, 255)  # HSV; a darker orange is brown, a darker yellow olive
SUB = 8  # sub-pixels per pixel along each axis; OpenCV fills half a one past the outline
FRACTION_BITS = 4  # of a coordinate that OpenCV takes


def _regular(corners: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(corners) / corners
    angle -= np.pi / 2
    x = np.cos(angle)
    y = np.sin(angle)
    return np.stack([x, y], axis=1)


def _square() -> np.ndarray:
    corners = [
        [-1, -1],
        [1, -1],
        [1, 1],
        [-1, 1],
    ]
    return 0.82 * np.array(corners)


def _star() -> np.ndarray:
    radius = np.where(np.arange(10) % 2, 0.42, 1.08)
    return _regular(10) * radius[:, None]


def _ellipse() -> np.ndarray:
    return _regular(48) * (1.15, 0.62)


def _diamond() -> np.ndarray:
    corners = [
        [0, -1.15],
        [0.72, 0],
        [0, 1.15],
        [-0.72, 0],
    ]
    return np.array(corners)


def _cross(arm: float = 0.34) -> np.ndarray:
    corners = [
        [arm, -1],
        [arm, -arm],
        [1, -arm],
    ]
    quarters = [np.array(corners)]
    turn = np.array([[0, 1], [-1, 0]])
    for _ in range(3):
        quarters.append(quarters[-1] @ turn)
    return np.concatenate(quarters)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t)
    y = y - 5 * np.cos(2 * t)
    y = y - 2 * np.cos(3 * t)
    y = y - np.cos(4 * t)
    corners = np.stack([x, -(y + 2.5)], axis=1)
    return corners / 17


# Corners in unit of the radius.
OUTLINES: dict[str, np.ndarray] = {
    "circle": _regular(48),
    "square": _square(),
    "triangle": 1.1 * _regular(3),
    "star": _star(),
    "ellipse": _ellipse(),
    "diamond": _diamond(),
    "cross": _cross(),
    "heart": _heart(),
}
SHAPES = tuple(OUTLINES)
# Radians up to which a turn makes no other shape of it.
MAX_TURN = {
    "circle": 0.0,
    "square": 0.2,
    "triangle": 0.35,
    "star": 0.3,
    "ellipse": 0.5,
    "diamond": 0.15,
    "cross": 0.2,
    "heart": 0.25,
}


def cut_shape(rng: Generator, shape: str, radius: float, size: tuple[int, ...]) -> np.ndarray:
    """Draw the coverage (0..1) of a patch of pixels by a shape, turned a little.

    Args:
        radius: in pixels.
        size: (height, width) of an image that the shape would lie in somewhere, at least MARGIN
            pixels from its border; only the fraction of a pixel is left of that position.
    """
    turn = MAX_TURN[shape]
    rotation = _rotation(rng.uniform(-turn, turn))
    points = radius * OUTLINES[shape] @ rotation
    low = points.min(axis=0)
    span = points.max(axis=0) - low
    room = np.array(size[::-1]) - MARGIN - span
    position = rng.uniform(MARGIN, room)
    origin = np.floor(position).astype(int) - MARGIN
    end = np.ceil(position + span).astype(int) + MARGIN
    width, height = (end - origin).tolist()
    return _coverage(points - low + position - origin, height, width)


def _rotation(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def _coverage(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return how much of each pixel lies in a polygon of (x, y) corners, float32 (H, W)."""
    canvas = np.zeros((height * SUB, width * SUB), np.uint8)
    local = points * SUB - 0.5  # OpenCV's coordinates are pixel centres
    fixed = np.rint(local * (1 << FRACTION_BITS))
    corners = fixed.astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255, shift=FRACTION_BITS)
    size = (width, height)
    alpha = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    return alpha.astype(np.float32) / 255


def shape_rgb(rng: Generator, colour: str) -> np.ndarray:
    """Draw a colour of that name, float32 (3,) in 0..255."""
    if colour == "white":
        level = rng.uniform(235, 255)
        return np.full(3, level, np.float32)
    hue = HUE[colour] + rng.uniform(-3, 3)
    saturation = rng.uniform(190, 255)
    value = rng.uniform(*VALUE)
    hsv = np.array([hue % 180, saturation, value])
    hsv_113 = hsv.astype(np.uint8)[None, None]
    rgb_113 = cv2.cvtColor(hsv_113, cv2.COLOR_HSV2RGB)
    return rgb_113[0, 0].astype(np.float32)
