"""Plain shapes in plain colours: their outlines, and their exact coverage of pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from wordmask.model.scenes.canvas import MARGIN

SHAPES = ("circle", "square", "triangle", "star", "ellipse", "diamond", "cross", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
# OpenCV's half degrees.
HUE = {"red": 0, "orange": 14, "yellow": 29, "green": 60, "cyan": 91, "blue": 114, "purple": 142}
VALUE = (205, 255)  # HSV; a darker orange is brown, a darker yellow olive
SUB = 8  # sub-pixels per pixel along each axis; OpenCV fills half a one past the outline
FRACTION_BITS = 4  # of a coordinate that OpenCV takes


def _regular(corners: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2.5) / 17], axis=1)


def _star() -> np.ndarray:
    tips = np.arange(10) % 2
    return _regular(10) * np.where(tips, 0.42, 1.08)[:, None]


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([[arm, -1], [arm, -arm], [1, -arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


# Outline in unit of the radius, and the turn (radians) up to which it is no other shape.
OUTLINES: dict[str, tuple[np.ndarray, float]] = {
    "circle": (_regular(48), 0.0),
    "square": (0.82 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]]), 0.2),
    "triangle": (1.1 * _regular(3), 0.35),
    "star": (_star(), 0.3),
    "ellipse": (_regular(48) * (1.15, 0.62), 0.5),
    "diamond": (np.array([[0, -1.15], [0.72, 0], [0, 1.15], [-0.72, 0]]), 0.15),
    "cross": (_cross(), 0.2),
    "heart": (_heart(), 0.25),
}


def cut_shape(rng: Generator, shape: str, radius: float, size: tuple[int, ...]) -> np.ndarray:
    """Draw the coverage (0..1) of a patch of pixels by a shape, turned a little.

    Args:
        radius: in pixels.
        size: (height, width) of an image that the shape would lie in somewhere, at least MARGIN
            pixels from its border; only the fraction of a pixel is left of that position.
    """
    outline, turn = OUTLINES[shape]
    points = radius * outline @ _rotation(rng.uniform(-turn, turn))
    low = points.min(axis=0)
    span = points.max(axis=0) - low
    position = rng.uniform(MARGIN, np.array(size[::-1]) - MARGIN - span)
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
    corners = np.rint(local * (1 << FRACTION_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255, shift=FRACTION_BITS)
    alpha = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return alpha.astype(np.float32) / 255


def shape_rgb(rng: Generator, colour: str) -> np.ndarray:
    """Draw a colour of that name, float32 (3,) in 0..255."""
    if colour == "white":
        return np.full(3, rng.uniform(235, 255), np.float32)
    hue = (HUE[colour] + rng.uniform(-3, 3)) % 180
    hsv = np.array([[[hue, rng.uniform(190, 255), rng.uniform(*VALUE)]]])
    rgb = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return rgb[0, 0].astype(np.float32)
