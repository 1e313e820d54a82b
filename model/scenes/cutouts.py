"""What is pasted into a scene: sprites and plain shapes, cut out in a size, and their shadows."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from wordmask.model.scenes.canvas import MARGIN, Piece
from wordmask.model.scenes.shapes import COLOURS, cut_shape, shape_rgb
from wordmask.model.scenes.sprites import SpriteLibrary

TURN = 25  # degrees either way
SHADOW_SHARE = 0.7  # of scenes
WIDEST = 2.3  # radii: the widest outline of a plain shape
DIAGONAL = 1.45  # sides of a square canvas, on which it can be turned


@dataclass(frozen=True, kw_only=True)
class Cutout(Piece):
    """A piece with its paint: float32 (3, h, w) in 0..255, alpha multiplied in."""

    paint_3hw: np.ndarray
    style: str | None

    @property
    def mean_3(self) -> np.ndarray:
        """Mean colour where it covers."""
        return self.paint_3hw.sum(axis=(1, 2)) / max(float(self.alpha_hw.sum()), 1e-6)


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """The light of a scene: how dark its shadows are, how soft, and where they fall.

    `softness` and `offset` (x, y) are in unit of an object's longer side.
    """

    depth: float
    softness: float
    offset: tuple[float, float]

    @classmethod
    def draw(cls, rng: Generator) -> Shadows:
        """Draw the light of a scene, perhaps one without shadows."""
        depth = 0.0
        if rng.random() < SHADOW_SHARE:
            depth = float(rng.uniform(0.1, 0.5))
        softness = float(rng.uniform(0.02, 0.06))
        offset = (float(rng.uniform(-0.1, 0.1)), float(rng.uniform(0.02, 0.1)))
        return cls(depth=depth, softness=softness, offset=offset)

    def cast(self, image_3HW: np.ndarray, piece: Piece) -> None:
        """Darken the canvas, in place, where the shadow of a piece falls."""
        if not self.depth:
            return
        h, w = piece.alpha_hw.shape
        side = max(h, w)
        dx, dy = (round(share * side) for share in self.offset)
        pad = abs(dx) + dy + round(3 * self.softness * side)
        borders = (pad + dy, pad - dy, pad + dx, pad - dx)
        dark = cv2.copyMakeBorder(piece.alpha_hw, *borders, cv2.BORDER_CONSTANT)
        dark = cv2.GaussianBlur(dark, (0, 0), max(0.6, self.softness * side))
        top, left = piece.y - pad, piece.x - pad
        y0, x0 = max(0, top), max(0, left)
        window = image_3HW[:, y0 : top + h + 2 * pad, x0 : left + w + 2 * pad]
        inside = dark[y0 - top :, x0 - left :][: window.shape[1], : window.shape[2]]
        window *= 1 - np.float32(self.depth) * inside


def cut_sprite(
    rng: Generator, sprites: SpriteLibrary, name: str, *, recoloured: float, extent: float
) -> Cutout:
    """Cut out one of a noun's sprites: turned, perhaps flipped, in colours a little off its own.

    Args:
        recoloured: probability of any other hue instead.
        extent: longer side in pixels.
    """
    numbers = sprites.numbers_of[name]
    number = numbers[rng.integers(len(numbers))]
    pixels = sprites.pixels_NSS4[number]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = _change_colours(rng, pixels, rng.random() < recoloured)
    patch = _turn(pixels, float(rng.uniform(-TURN, TURN)), extent)
    paint = patch[..., :3].transpose(2, 0, 1)
    return Cutout(
        name=name,
        alpha_hw=patch[..., 3] / np.float32(255),
        y=0,
        x=0,
        paint_3hw=np.ascontiguousarray(paint, dtype=np.float32),
        style=sprites.style_of(number),
    )


def cut_plain(rng: Generator, name: str, extent: float) -> Cutout:
    """Cut out a plain shape in a plain colour, a little darker towards its foot."""
    side = round(1.6 * extent) + 2 * MARGIN
    alpha = cut_shape(rng, name, extent / WIDEST, (side, side))
    shade = np.linspace(1.0, rng.uniform(0.88, 1.0), alpha.shape[0], dtype=np.float32)
    colour = shape_rgb(rng, COLOURS[rng.integers(len(COLOURS))])
    paint = colour[:, None, None] * (alpha * shade[:, None])
    return Cutout(name=name, alpha_hw=alpha, y=0, x=0, paint_3hw=paint, style=None)


def _change_colours(rng: Generator, pixels_SS4: np.ndarray, recoloured: bool) -> np.ndarray:
    """Change saturation, brightness and hue; return uint8 RGBA, alpha multiplied in."""
    table = _colour_change(rng, recoloured)
    rgba = np.ascontiguousarray(pixels_SS4)
    hsv = cv2.LUT(cv2.cvtColor(rgba[..., :3], cv2.COLOR_RGB2HSV), table[None])
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    alpha = rgba[..., 3]
    rgb = cv2.multiply(rgb, cv2.merge([alpha] * 3), scale=1 / 255)
    return np.dstack([rgb, alpha])


def _colour_change(rng: Generator, recoloured: bool) -> np.ndarray:
    """Draw the new value of each old one, uint8 (256, hue and saturation and value)."""
    shift = rng.uniform(20, 160) if recoloured else rng.uniform(-3, 3)  # OpenCV's half degrees
    level = np.arange(256, dtype=np.float32)
    hue = (level + np.float32(shift)) % 180
    saturation = np.minimum(level * np.float32(rng.uniform(0.85, 1.15)), 255)
    value = np.minimum(level * np.float32(rng.uniform(0.85, 1.1)), 255)
    return np.stack([hue, saturation, value], axis=-1).astype(np.uint8)


def _turn(pixels_SS4: np.ndarray, degrees: float, extent: float) -> np.ndarray:
    """Turn a sprite, crop it, and resize its longer side to `extent` pixels, uint8 (h, w, 4)."""
    side = pixels_SS4.shape[0]
    wide = int(side * DIAGONAL)
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1.0)
    turn[:, 2] += (wide - side) / 2
    turned = cv2.warpAffine(pixels_SS4, turn, (wide, wide), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect(turned[..., 3])
    scale = extent / max(w, h)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(turned[y : y + h, x : x + w], size, interpolation=interpolation)
