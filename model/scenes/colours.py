"""Names of colours: which word is right for a pixel, and which words are not surely wrong.

A word is right within its boxes of hue, saturation and value, and possible within wider ones.
Between the boxes lie colours on whose name people differ: they have none.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

BITS = 6  # of a channel that the table of colours keeps
SHARE = 0.5  # of an object's visible pixels that a word must be right for
POSSIBLE_SHARE = 0.2  # of those it is possible for: then the word is not surely wrong
Margin = tuple[float, float, float]  # degrees, saturation, value on either side
EXACT: Margin = (0.0, 0.0, 0.0)
WIDER: Margin = (12.0, 0.12, 0.12)


class Box(NamedTuple):
    """Hue in degrees (through 0 where low > high), saturation and value in 0..1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


def _read_boxes(table: str) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    for line in table.strip().splitlines():
        name, *numbers = line.split()
        bounds = [float(number) for number in numbers]
        lows, highs = bounds[::2], bounds[1::2]
        box = Box(*zip(lows, highs, strict=True))
        boxes.setdefault(name, []).append(box)
    return boxes


# Name, then hue from and to, saturation from and to, value from and to.
BOXES = _read_boxes("""
    red     348    9    0.55  1       0.45  1
    orange   20   38    0.6   1       0.75  1
    yellow   45   64    0.45  1       0.75  1
    green    80  160    0.3   1       0.3   1
    cyan    172  192    0.35  1       0.65  1
    blue    202  250    0.35  1       0.35  1
    purple  262  298    0.3   1       0.3   1
    pink    308  342    0.25  1       0.75  1
    pink    343    9    0.2   0.42    0.8   1
    brown    10   36    0.35  1       0.22  0.6
    white     0  360    0     0.1     0.88  1
    gray      0  360    0     0.14    0.32  0.74
    black     0  360    0     0.3     0     0.22
    black     0  360    0.3   1       0     0.15
""")
COLOUR_NAMES = tuple(BOXES)


def colours_of(pixels_N3: np.ndarray) -> tuple[str | None, frozenset[str]]:
    """Name the colour of some RGB pixels.

    Returns: the word that is right for at least half of them, or None, and all words that are not
        surely wrong.
    """
    right, possible = colour_table()
    index_N = _table_index(pixels_N3)
    name = _right_name(right[index_N])
    return name, _possible_names(possible[index_N])


def _right_name(right_N: np.ndarray) -> str | None:
    counts = np.bincount(right_N, minlength=len(BOXES) + 1)
    counts = counts[1:]
    best = int(counts.argmax())
    if counts[best] < SHARE * len(right_N):
        return None
    return COLOUR_NAMES[best]


def _possible_names(possible_N: np.ndarray) -> frozenset[str]:
    bits_C = np.arange(len(BOXES), dtype=np.uint16)
    possible_NC = possible_N[:, None] >> bits_C & 1
    counts = possible_NC.sum(axis=0)
    least = POSSIBLE_SHARE * len(possible_N)
    likely = np.flatnonzero(counts >= least)
    return frozenset(COLOUR_NAMES[colour] for colour in likely)


def _table_index(pixels_N3: np.ndarray) -> np.ndarray:
    kept_N3 = pixels_N3.astype(np.int32) >> 8 - BITS
    red, green, blue = kept_N3.T
    return (red << BITS | green) << BITS | blue


@cache
def colour_table() -> tuple[np.ndarray, np.ndarray]:
    """Return the names of every colour, of BITS bits a channel.

    Returns: one more than the index of the right word, or 0 where none is right; and a bit for
        each possible word.
    """
    hsv_N3 = _every_colour()
    right = np.zeros(len(hsv_N3), np.uint8)
    possible = np.zeros(len(hsv_N3), np.uint16)
    for index, boxes in enumerate(BOXES.values()):
        for box in boxes:
            right[_inside(hsv_N3, box, EXACT)] = index + 1
            possible[_inside(hsv_N3, box, WIDER)] |= np.uint16(1 << index)
    return right, possible


def _every_colour() -> np.ndarray:
    """Return the middle of each entry of the table as hue in degrees, saturation and value."""
    levels = 1 << BITS
    level = (np.arange(levels, dtype=np.float32) + 0.5) / levels
    channels = np.meshgrid(level, level, level, indexing="ij")
    rgb = np.stack(channels, axis=-1)
    hsv = cv2.cvtColor(rgb.reshape(-1, 1, 3), cv2.COLOR_RGB2HSV)
    return hsv[:, 0]


def _inside(hsv_N3: np.ndarray, box: Box, wider: Margin) -> np.ndarray:
    hue_N, saturation_N, value_N = hsv_N3.T
    degrees, saturation, value = wider
    low, high = box.hue
    span = (high - low) % 360 or 360
    middle = (low + span / 2) % 360
    off_N = (hue_N - middle + 180) % 360 - 180
    near_N = np.abs(off_N) <= span / 2 + degrees
    near_N &= _within(saturation_N, box.saturation, saturation)
    near_N &= _within(value_N, box.value, value)
    return near_N


def _within(value_N: np.ndarray, bounds: tuple[float, float], wider: float) -> np.ndarray:
    low, high = bounds
    return (value_N >= low - wider) & (value_N <= high + wider)
