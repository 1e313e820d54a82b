"""Plain shapes in plain colours: outlines, and their exact coverage of pixels."""

from __future__ import annotations

import cv2
import numpy as np

from wordmask.model.scenes.canvas import MARGIN

SHAPES = ("circle", "square", "triangle", "star", "ellipse", "diamond", "cross", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
HUE = {
    "red": 0,
    "orange": 14,
    "yellow": 29,
    "green": 60,
    "cyan": 91,
    "blue": 114,
    "purple": 142,
}  # OpenCV's half degrees
VALUE = (205, 255)  # HSV; a darker orange is brown, a darker yellow olive
SUB = 8  # sub-pixels per pixel along each axis; OpenCV fills half a one past the outline


def _regular(n: int, phase: float = 0.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n - np.pi / 2 + phase
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = (
        16 * np.sin(t) ** 3,
        13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t),
    )
    return np.stack([x / 17, -(y + 2.5) / 17], axis=1)


def _star() -> np.ndarray:
    return _regular(10) * np.where(np.arange(10) % 2, 0.42, 1.08)[:, None]


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([[arm, -1], [arm, -arm], [1, -arm]])
    turns = [quarter @ np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
    return np.concatenate(turns)


# Outline in units of the radius, and by how much (radians) it may be turned without becoming
# another shape.
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


def cut_shape(
    rng: np.random.Generator, shape: str, radius: float, size: tuple[int, ...]
) -> tuple[np.ndarray, int, int]:
    """Coverage (0..1) of a patch of pixels, and its place (y, x), somewhere in an image of `size`
    (height, width), at least MARGIN pixels from its border."""
    outline, turn = OUTLINES[shape]
    angle = rng.uniform(-turn, turn)
    points = (
        radius
        * outline
        @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    )
    low = points.min(axis=0)
    span = points.max(axis=0) - low
    place = rng.uniform(MARGIN, np.array(size[::-1]) - MARGIN - span)
    origin = np.floor(place).astype(int) - MARGIN
    w, h = (int(n) for n in np.ceil(place + span).astype(int) + MARGIN - origin)
    canvas = np.zeros((h * SUB, w * SUB), np.uint8)
    local = (
        points - low + place - origin
    ) * SUB - 0.5  # OpenCV's polygon coordinates are pixel centres
    cv2.fillPoly(canvas, [np.rint(local * 16).astype(np.int32)], 255, shift=4)
    alpha = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return alpha, int(origin[1]), int(origin[0])


def shape_rgb(rng: np.random.Generator, colour: str) -> np.ndarray:
    """A colour of that name, float32 (3,) in 0..255."""
    if colour == "white":
        return np.full(3, rng.uniform(235, 255), np.float32)
    hsv = np.array(
        [[[(HUE[colour] + rng.uniform(-3, 3)) % 180, rng.uniform(190, 255), rng.uniform(*VALUE)]]]
    )
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
