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
WIDER = (12.0, 0.12, 0.12)  # degrees, saturation, value on either side


class Box(NamedTuple):
    """Hue in degrees (through 0 where low > high), saturation and value in 0..1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


BOXES: dict[str, tuple[Box, ...]] = {
    "red": (Box((348, 9), (0.55, 1), (0.45, 1)),),
    "orange": (Box((20, 38), (0.6, 1), (0.75, 1)),),
    "yellow": (Box((45, 64), (0.45, 1), (0.75, 1)),),
    "green": (Box((80, 160), (0.3, 1), (0.3, 1)),),
    "cyan": (Box((172, 192), (0.35, 1), (0.65, 1)),),
    "blue": (Box((202, 250), (0.35, 1), (0.35, 1)),),
    "purple": (Box((262, 298), (0.3, 1), (0.3, 1)),),
    "pink": (Box((308, 342), (0.25, 1), (0.75, 1)), Box((343, 9), (0.2, 0.42), (0.8, 1))),
    "brown": (Box((10, 36), (0.35, 1), (0.22, 0.6)),),
    "white": (Box((0, 360), (0, 0.1), (0.88, 1)),),
    "gray": (Box((0, 360), (0, 0.14), (0.32, 0.74)),),
    "black": (Box((0, 360), (0, 0.3), (0, 0.22)), Box((0, 360), (0.3, 1), (0, 0.15))),
}
COLOUR_NAMES = tuple(BOXES)


def colours_of(pixels_N3: np.ndarray) -> tuple[str | None, frozenset[str]]:
    """Name the colour of some RGB pixels.

    Returns: the word that is right for at least half of them, or None, and all words that are not
        surely wrong.
    """
    right, possible = colour_table()
    index_N = _table_index(pixels_N3)
    counts = np.bincount(right[index_N], minlength=len(BOXES) + 1)[1:]
    best = int(counts.argmax())
    name = None
    if counts[best] >= SHARE * len(index_N):
        name = COLOUR_NAMES[best]
    bit_of_each = np.arange(len(BOXES), dtype=np.uint16)
    possible_NC = possible[index_N, None] >> bit_of_each & 1
    likely = np.flatnonzero(possible_NC.sum(axis=0) >= POSSIBLE_SHARE * len(index_N))
    return name, frozenset(COLOUR_NAMES[colour] for colour in likely)


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
        inside = np.any([_inside(hsv_N3, box, (0.0, 0.0, 0.0)) for box in boxes], axis=0)
        near = np.any([_inside(hsv_N3, box, WIDER) for box in boxes], axis=0)
        right[inside] = index + 1
        possible |= near.astype(np.uint16) << np.uint16(index)
    return right, possible


def _every_colour() -> np.ndarray:
    """Return the middle of each entry of the table as hue in degrees, saturation and value."""
    level = (np.arange(1 << BITS, dtype=np.float32) + 0.5) / (1 << BITS)
    rgb = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1)
    return cv2.cvtColor(rgb.reshape(-1, 1, 3), cv2.COLOR_RGB2HSV)[:, 0]


def _inside(hsv_N3: np.ndarray, box: Box, wider: tuple[float, float, float]) -> np.ndarray:
    low, high = box.hue
    span = (high - low) % 360 or 360
    middle = (low + span / 2) % 360
    off_N = np.abs((hsv_N3[:, 0] - middle + 180) % 360 - 180)
    inside_N = off_N <= span / 2 + wider[0]
    for channel, (least, most) in ((1, box.saturation), (2, box.value)):
        value_N = hsv_N3[:, channel]
        inside_N &= value_N >= least - wider[channel]
        inside_N &= value_N <= most + wider[channel]
    return inside_N
