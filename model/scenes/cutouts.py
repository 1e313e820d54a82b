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
        area = float(self.alpha_hw.sum())
        total_3 = self.paint_3hw.sum(axis=(1, 2))
        return total_3 / max(area, 1e-6)


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """The light of a scene: how dark its shadows are, how soft, and where they fall.

    `softness`, `right` and `down` are in unit of an object's longer side.
    """

    depth: float
    softness: float
    right: float
    down: float

    @classmethod
    def draw(cls, rng: Generator) -> Shadows:
        """Draw the light of a scene, perhaps one without shadows."""
        depth = 0.0
        if rng.random() < SHADOW_SHARE:
            depth = rng.uniform(0.1, 0.5)
        return cls(
            depth=depth,
            softness=rng.uniform(0.02, 0.06),
            right=rng.uniform(-0.1, 0.1),
            down=rng.uniform(0.02, 0.1),
        )

    def cast(self, image_3HW: np.ndarray, piece: Piece) -> None:
        """Darken the canvas, in place, where the shadow of a piece falls."""
        if not self.depth:
            return
        dark, pad = self._shadow_of(piece)
        height, width = dark.shape
        top = piece.y - pad
        left = piece.x - pad
        bottom = top + height

        y0 = max(0, top)
        x0 = max(0, left)
        window_3hw = image_3HW[:, y0:bottom, x0 : left + width]
        _, h, w = window_3hw.shape
        inside_hw = dark[y0 - top :, x0 - left :]
        depth = np.float32(self.depth)
        window_3hw *= 1 - depth * inside_hw[:h, :w]

    def _shadow_of(self, piece: Piece) -> tuple[np.ndarray, int]:
        """Return a shadow, 0..1, and by how many pixels it is wider than the piece all around."""
        side = max(piece.alpha_hw.shape)
        dx = round(self.right * side)
        dy = round(self.down * side)
        blur = self.softness * side
        pad = abs(dx) + dy + round(3 * blur)
        borders = (pad + dy, pad - dy, pad + dx, pad - dx)
        moved = cv2.copyMakeBorder(piece.alpha_hw, *borders, cv2.BORDER_CONSTANT)
        dark = cv2.GaussianBlur(moved, (0, 0), max(0.6, blur))
        return dark, pad


def cut_sprite(
    rng: Generator,
    sprites: SpriteLibrary,
    name: str,
    *,
    recoloured: float,
    extent: float,
) -> Cutout:
    """Cut out one of a noun's sprites: turned, perhaps flipped, in colours a little off its own.

    Args:
        recoloured: probability of any other hue instead.
        extent: longer side in pixels.
    """
    numbers = sprites.numbers_of[name]
    chosen = rng.integers(len(numbers))
    number = numbers[chosen]
    pixels = sprites.pixels_NSS4[number]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    any_hue = rng.random() < recoloured
    pixels = _change_colours(rng, pixels, any_hue)
    degrees = rng.uniform(-TURN, TURN)
    patch_hw4 = _turn(pixels, degrees, extent)
    rgb_hw3 = patch_hw4[..., :3]
    paint_3hw = rgb_hw3.transpose(2, 0, 1)
    alpha_hw = patch_hw4[..., 3] / np.float32(255)
    return Cutout(
        name=name,
        alpha_hw=alpha_hw,
        y=0,
        x=0,
        paint_3hw=np.ascontiguousarray(paint_3hw, dtype=np.float32),
        style=sprites.style_of(number),
    )


def cut_plain(rng: Generator, name: str, extent: float) -> Cutout:
    """Cut out a plain shape in a plain colour, a little darker towards its foot."""
    side = round(1.6 * extent) + 2 * MARGIN
    radius = extent / WIDEST
    alpha_hw = cut_shape(rng, name, radius, (side, side))
    foot = rng.uniform(0.88, 1.0)
    shade_h = np.linspace(1.0, foot, len(alpha_hw), dtype=np.float32)
    chosen = rng.integers(len(COLOURS))
    rgb_3 = shape_rgb(rng, COLOURS[chosen])
    shaded_hw = alpha_hw * shade_h[:, None]
    return Cutout(
        name=name,
        alpha_hw=alpha_hw,
        y=0,
        x=0,
        paint_3hw=rgb_3[:, None, None] * shaded_hw,
        style=None,
    )


def _change_colours(rng: Generator, pixels_SS4: np.ndarray, any_hue: bool) -> np.ndarray:
    """Change saturation, brightness and hue; return uint8 RGBA, alpha multiplied in."""
    table = _colour_change(rng, any_hue)
    rgba = np.ascontiguousarray(pixels_SS4)
    hsv = cv2.cvtColor(rgba[..., :3], cv2.COLOR_RGB2HSV)
    hsv = cv2.LUT(hsv, table[None])
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    alpha = rgba[..., 3]
    weight = cv2.merge([alpha, alpha, alpha])
    rgb = cv2.multiply(rgb, weight, scale=1 / 255)
    return np.dstack([rgb, alpha])


def _colour_change(rng: Generator, any_hue: bool) -> np.ndarray:
    """Draw the new value of each old one, uint8 (256, hue and saturation and value)."""
    turn = (20, 160) if any_hue else (-3, 3)  # OpenCV's half degrees
    level = np.arange(256, dtype=np.float32)
    shift = np.float32(rng.uniform(*turn))
    hue = (level + shift) % 180
    more_colour = np.float32(rng.uniform(0.85, 1.15))
    saturation = level * more_colour
    more_light = np.float32(rng.uniform(0.85, 1.1))
    value = level * more_light
    table = np.stack([hue, saturation, value], axis=-1)
    return np.minimum(table, 255).astype(np.uint8)


def _turn(pixels_SS4: np.ndarray, degrees: float, extent: float) -> np.ndarray:
    """Turn a sprite, crop it, and resize its longer side to `extent` pixels, uint8 (h, w, 4)."""
    side = len(pixels_SS4)
    wide = int(side * DIAGONAL)
    centre = (side - 1) / 2
    turn = cv2.getRotationMatrix2D((centre, centre), degrees, 1.0)
    turn[:, 2] += (wide - side) / 2
    turned = cv2.warpAffine(pixels_SS4, turn, (wide, wide), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect(turned[..., 3])
    cropped = turned[y : y + h, x : x + w]
    scale = extent / max(w, h)
    width = max(1, round(w * scale))
    height = max(1, round(h * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(cropped, (width, height), interpolation=interpolation)
