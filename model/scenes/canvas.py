"""A scene, its objects, and the pieces that are painted to make it, later ones in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

MIN_VISIBLE = 0.6  # of an object's own area
MIN_GAP = 0.06  # of the side: centres closer than this along an axis have no order
NOISE = (1.0, 5.0)  # least, most deviation of the grain, of 255
# Pixels: least distance to the border of the image, and between objects of one name.
MARGIN = 2
REACH = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
BACKGROUND = -1  # in an instance map
Box = tuple[int, int, int, int]
FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """An object of a scene, as far as it is visible.

    `mask_HW` is uint8 of 0/1, and `box` its (x_min, y_min, x_max, y_max) in pixels. `name` is a
    noun or a plain shape, `style` the artwork of a sprite. `colour` is None where no one word is
    right; `possible_colours` are all words that are not surely wrong.
    """

    name: str
    colour: str | None
    size_name: str
    mask_HW: np.ndarray
    box: Box
    style: str | None = None
    possible_colours: frozenset[str] = frozenset()

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, (x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def area(self) -> float:
        """Visible pixels."""
        return float(self.mask_HW.sum())

    @property
    def extent(self) -> int:
        """Longer side of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and its objects, back to front.

    `image_HW3` is uint8 RGB. `instance_HW` is int16: the index of the visible object, or
    `BACKGROUND`.
    """

    image_HW3: np.ndarray
    objects: tuple[SceneObject, ...]
    instance_HW: np.ndarray

    def truth(self, target: int | None) -> np.ndarray:
        """Return the mask of an object, uint8 of 0/1; an empty one for None."""
        if target is None:
            return np.zeros(self.instance_HW.shape, np.uint8)
        return self.objects[target].mask_HW


def unit_box(box: FloatBox, height: int, width: int) -> FloatBox:
    """Convert (x_min, y_min, x_max, y_max) in pixels to (cx, cy, w, h) in unit of image."""
    x0, y0, x1, y1 = box
    cx = (x0 + x1) / 2 / width
    cy = (y0 + y1) / 2 / height
    w = (x1 - x0) / width
    h = (y1 - y0) / height
    return cx, cy, w, h


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An object before it is painted: its coverage of a patch of pixels, and where the patch is.

    `alpha_hw` is float32 in 0..1; `y` and `x` are the patch's upper left pixel.
    """

    name: str
    alpha_hw: np.ndarray
    y: int
    x: int

    @property
    def cover_hw(self) -> np.ndarray:
        """The pixels of the patch that are the object's: covered by more than half."""
        return self.alpha_hw > 0.5

    def window(self, image: np.ndarray) -> np.ndarray:
        """Return the patch of an image (..., H, W), as a view."""
        height, width = self.alpha_hw.shape
        rows = slice(self.y, self.y + height)
        columns = slice(self.x, self.x + width)
        return image[..., rows, columns]

    def near(self, instance_HW: np.ndarray) -> set[int]:
        """Return the objects that it would lie on, or within MARGIN of."""
        cover_hw = self.cover_hw.astype(np.uint8)
        around_hw = cv2.dilate(cover_hw, REACH) > 0
        touched = self.window(instance_HW)[around_hw]
        return set(touched.tolist()) - {BACKGROUND}


def leaves_visible(piece: Piece, instance_HW: np.ndarray, behind: Mapping[int, Piece]) -> bool:
    """Whether enough of each object behind stays visible when the piece is painted."""
    hidden = piece.window(instance_HW)[piece.cover_hw]
    for index, other in behind.items():
        before = np.count_nonzero(instance_HW == index)
        left = before - np.count_nonzero(hidden == index)
        whole = other.cover_hw.sum()
        if left < MIN_VISIBLE * whole:
            return False
    return True


def visible(instance_HW: np.ndarray, index: int) -> tuple[np.ndarray, Box]:
    """Return the mask of an object in an instance map, and its box in pixels."""
    mask_HW = (instance_HW == index).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask_HW)
    return mask_HW, (x, y, x + w, y + h)


def add_grain(image_3HW: np.ndarray, rng: Generator) -> np.ndarray:
    """Add noise to a whole canvas, in place, and return it as uint8 (H, W, 3)."""
    size = image_3HW.shape[1:]
    noise_HW = rng.standard_normal(size, dtype=np.float32)
    deviation = np.float32(rng.uniform(*NOISE))
    image_3HW += noise_HW * deviation
    pixels_3HW = np.clip(image_3HW, 0, 255).astype(np.uint8)
    return cv2.merge(list(pixels_3HW))
