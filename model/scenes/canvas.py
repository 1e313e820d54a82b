"""What a scene is, and what is laid on its canvas: pieces that cover patches of pixels, later ones
in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MIN_VISIBLE = 0.6  # of an object's own area
MIN_GAP = 0.06  # of the side: centres closer than this along an axis have no order
NOISE = (1.0, 5.0)  # least, most deviation of the grain, of 255
MARGIN = 2  # pixels: least distance to the border of the image, and between objects that look alike


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object. `mask_HW` uint8 is what is visible of it, `box` (x_min, y_min, x_max, y_max) that
    mask's, pixels.

    `name` is a noun or a plain shape. `colour` is None where no one word is right; `could_be` are
    further colours that it is not surely free of. `style` is a sprite's artwork.
    """

    name: str
    colour: str | None
    size_name: str
    mask_HW: np.ndarray
    box: tuple[int, int, int, int]
    style: str | None = None
    could_be: frozenset[str] = frozenset()

    @property
    def shape(self) -> str:
        """The name, where it is a plain shape's."""
        return self.name

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`image_HW3` uint8 RGB; objects back to front; `instance_HW` int16: index of the visible
    object, -1 for background.
    """

    image_HW3: np.ndarray
    objects: tuple[SceneObject, ...]
    instance_HW: np.ndarray

    def truth(self, target: int | None) -> np.ndarray:
        """The mask of object number `target`, uint8 of 0/1; an empty one for None, which is nothing
        in the scene.
        """
        return (
            np.zeros(self.instance_HW.shape, np.uint8)
            if target is None
            else self.objects[target].mask_HW
        )


def unit_box(
    box: tuple[float, float, float, float], height: int, width: int
) -> tuple[float, float, float, float]:
    """(x_min, y_min, x_max, y_max) in pixels to (cx, cy, w, h) in unit of image."""
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An object about to be painted: what it is, its coverage of a patch of pixels (0..1), and the
    patch's place.
    """

    name: str
    alpha_hw: np.ndarray
    y: int
    x: int

    @property
    def cover_hw(self) -> np.ndarray:
        return self.alpha_hw > 0.5

    def window(self, image: np.ndarray) -> np.ndarray:
        """The patch as a view of (..., H, W)."""
        return image[
            ..., self.y : self.y + self.alpha_hw.shape[0], self.x : self.x + self.alpha_hw.shape[1]
        ]

    def near(self, instance_HW: np.ndarray) -> set[int]:
        """The objects that it would lie on, or within MARGIN of."""
        around = (
            cv2.dilate(
                self.cover_hw.astype(np.uint8), np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
            )
            > 0
        )
        return set(self.window(instance_HW)[around].tolist()) - {-1}


def leaves_visible(piece: Piece, instance_HW: np.ndarray, behind: dict[int, Piece]) -> bool:
    """Whether enough is left to see of each of those behind."""
    hidden = piece.window(instance_HW)[piece.cover_hw]
    return all(
        (instance_HW == index).sum() - (hidden == index).sum() >= MIN_VISIBLE * other.cover_hw.sum()
        for index, other in behind.items()
    )


def visible(instance_HW: np.ndarray, index: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Mask and box of what is to be seen of an object."""
    mask = (instance_HW == index).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    return mask, (x, y, x + w, y + h)


def finish(image_3HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The canvas with grain over all of it, as uint8 (H, W, 3)."""
    image_3HW += rng.standard_normal(image_3HW.shape[1:], dtype=np.float32) * np.float32(
        rng.uniform(*NOISE)
    )
    return cv2.merge(list(np.clip(image_3HW, 0, 255).astype(np.uint8)))
