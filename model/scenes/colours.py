"""What colours are called: which colour words are right for a pixel, and which are not surely
wrong.

A word is right within its box of hue, saturation and value, and possible within a wider one.
Between the boxes lie colours on whose name people differ, and these have none.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

BITS = 6  # of a channel that the table of colours keeps
SHARE = (
    0.5  # of an object's visible pixels that a word is right for: then it is the object's colour
)
POSSIBLE_SHARE = 0.2  # of those it is possible for: then the object is not surely free of it
WIDER = (12.0, 0.12, 0.12)  # degrees, saturation, value on either side


class Box(NamedTuple):
    """Hue in degrees (around through 0 where low > high), saturation and value in 0..1."""

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
    """The word that is right for at least half of some RGB pixels, or None, and all words that are
    not surely wrong for them.
    """
    step = 8 - BITS
    r, g, b = (pixels_N3[:, channel].astype(np.int32) >> step for channel in range(3))
    right, possible = table()
    place = (r << BITS | g) << BITS | b
    counts = np.bincount(right[place], minlength=len(BOXES) + 1)[1:]
    likely = (possible[place, None] >> np.arange(len(BOXES), dtype=np.uint16) & 1).sum(axis=0)
    first = int(counts.argmax())
    name = COLOUR_NAMES[first] if counts[first] >= SHARE * len(place) else None
    return name, frozenset(
        COLOUR_NAMES[c] for c in np.flatnonzero(likely >= POSSIBLE_SHARE * len(place))
    )


@cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """For every colour, BITS to a channel: one more than the place of the right word (0: none), and
    a bit for each possible one.
    """
    level = (np.arange(1 << BITS, dtype=np.float32) + 0.5) / (1 << BITS)
    rgb = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[:, 0]
    right, possible = np.zeros(len(hsv), np.uint8), np.zeros(len(hsv), np.uint16)
    for place, boxes in enumerate(BOXES.values()):
        right[np.any([_inside(hsv, box, (0.0, 0.0, 0.0)) for box in boxes], axis=0)] = place + 1
        possible |= np.any([_inside(hsv, box, WIDER) for box in boxes], axis=0).astype(
            np.uint16
        ) << np.uint16(place)
    return right, possible


def _inside(hsv_N3: np.ndarray, box: Box, wider: tuple[float, float, float]) -> np.ndarray:
    low, high = box.hue
    middle, half = (low + ((high - low) % 360 or 360) / 2) % 360, ((high - low) % 360 or 360) / 2
    inside = np.abs((hsv_N3[:, 0] - middle + 180) % 360 - 180) <= half + wider[0]
    for channel, (least, most) in ((1, box.saturation), (2, box.value)):
        inside &= (hsv_N3[:, channel] >= least - wider[channel]) & (
            hsv_N3[:, channel] <= most + wider[channel]
        )
    return inside
