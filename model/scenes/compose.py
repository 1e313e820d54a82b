"""Scenes of things with names: sprites and a few plain shapes, some of them more than once and not
alike.

Everything is a function of a seed. Masks are exact: an object's mask is where it covers more than
half a pixel and nothing in front of it does. Objects may hide one another a little. No two in a
scene could be called by one word unless they have the same name. What is said about them:
`model/train/expressions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wordmask.model.scenes.backgrounds import varied
from wordmask.model.scenes.canvas import (
    MARGIN,
    Piece,
    Scene,
    SceneObject,
    finish,
    leaves_visible,
    visible,
)
from wordmask.model.scenes.colours import colours_of
from wordmask.model.scenes.nouns import alike
from wordmask.model.scenes.shapes import COLOURS, SHAPES, cut_shape, shape_rgb
from wordmask.model.scenes.sprites import SpriteLibrary

TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS = (
    range(10**8),
    range(10**8, 2 * 10**8),
    range(2 * 10**8, 3 * 10**8),
)
MIN_SIDE = 32  # pixels: below it a small object is too few pixels to have a shape
MAX_ASPECT = 1.4  # of a drawn size
OBJECTS = (1, 7)  # fewest, most
SHAPE_SHARE = 0.2  # of objects that are plain shapes
# of objects that have the name of one before them, so that they must be told apart otherwise
TWIN_SHARE = 0.5
EXTENT = (0.2, 0.58)  # longer side of an object, unit of the image's short side
EXTREMES = (
    0.6,
    0.6,
    # of the beta distribution of sizes, on a logarithmic scale: more small and large ones than
    # middling
)
CROWD = 4  # objects; where there are more, none is larger than CROWD_EXTENT
CROWD_EXTENT = 0.4
SIZE_NAMES = {
    "small": 0.26,
    "medium": 0.38,
}  # longer side up to this, unit of the short side; "large" beyond
TURN = 25  # degrees either way
RECOLOURED = {
    False: 0.1,
    True: 0.4,
}  # share of objects painted in another hue, by whether they are twins
CONTRAST = 30  # of 255, in some channel: least difference in mean colour from the background
OBJECT_CONTRAST = 45  # and from an object that it touches
CASTS = 3  # to find something that can be placed, before an object is left out
PLACES = 10  # to try for each


@dataclass(frozen=True, kw_only=True)
class Cutout(Piece):
    """A piece with its paint: float32 (3, h, w) in 0..255, alpha multiplied in."""

    paint_3hw: np.ndarray
    style: str | None

    @property
    def mean_3(self) -> np.ndarray:
        return self.paint_3hw.sum(axis=(1, 2)) / max(float(self.alpha_hw.sum()), 1e-6)


def make_scene(
    seed: int,
    *,
    sprites: SpriteLibrary,
    height: int | None = None,
    width: int | None = None,
    n_objects: tuple[int, int] = OBJECTS,
) -> Scene:
    """The scene of a seed, of `n_objects` (fewest, most) objects, fewer only where there is no room
    left for one.

    Without a size: short side 112-120 pixels, long side up to 1.4 times that; of one side alone,
    the other follows it by up to 1.4. ValueError for a side under 32 pixels, or counts that are
    negative or the wrong way round.
    """
    _check(height, width, n_objects)
    rng = np.random.default_rng((seed, 17))
    height, width = _draw_size(rng, height, width)
    image_3HW = varied(rng, height, width)
    instance_HW = np.full((height, width), -1, np.int16)
    shadow = _Shadow.draw(rng)
    pieces: list[Cutout] = []
    count = int(rng.integers(n_objects[0], n_objects[1] + 1))
    for _ in range(count):
        piece = _place(
            rng,
            image_3HW,
            instance_HW,
            pieces,
            sprites,
            CROWD_EXTENT if count > CROWD else EXTENT[1],
        )
        if piece is not None:
            shadow.cast(image_3HW, piece)
            window = piece.window(image_3HW)
            window += piece.paint_3hw - window * piece.alpha_hw
            piece.window(instance_HW)[piece.cover_hw] = len(pieces)
            pieces.append(piece)
    pixels = finish(image_3HW, rng)
    objects = tuple(_seen(pixels, instance_HW, index, piece) for index, piece in enumerate(pieces))
    return Scene(image_HW3=pixels, objects=objects, instance_HW=instance_HW)


def _check(height: int | None, width: int | None, n_objects: tuple[int, int]) -> None:
    for name, side in (("height", height), ("width", width)):
        if side is not None and side < MIN_SIDE:
            raise ValueError(
                f"{name} {side} is under {MIN_SIDE} pixels, where shapes cannot be told apart: give"
                f" {MIN_SIDE} or more"
            )
    if not 0 <= n_objects[0] <= n_objects[1]:
        raise ValueError(
            f"n_objects {n_objects} is not (fewest, most) with 0 <= fewest <= most: give for"
            " example (2, 6)"
        )


def _draw_size(rng: np.random.Generator, height: int | None, width: int | None) -> tuple[int, int]:
    short = int(rng.integers(112, 121))
    ratio = rng.uniform(1.0, MAX_ASPECT)
    portrait = rng.random() >= 0.5
    given = height or width
    if given is not None:
        other = max(MIN_SIDE, int(given * ratio if portrait == (height is None) else given / ratio))
        return height or other, width or other
    return (int(short * ratio), short) if portrait else (short, int(short * ratio))


@dataclass(frozen=True, kw_only=True)
class _Shadow:
    """The light of a scene: how dark its shadows are, how soft, and where they fall, in unit of an
    object's longer side.
    """

    depth: float
    softness: float
    offset: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Shadow:
        depth = float(rng.uniform(0.1, 0.5)) if rng.random() < 0.7 else 0.0
        return cls(
            depth=depth,
            softness=float(rng.uniform(0.02, 0.06)),
            offset=(float(rng.uniform(-0.1, 0.1)), float(rng.uniform(0.02, 0.1))),
        )

    def cast(self, image_3HW: np.ndarray, piece: Piece) -> None:
        """Darken the canvas where the piece's shadow falls."""
        if not self.depth:
            return
        h, w = piece.alpha_hw.shape
        side = max(h, w)
        dx, dy = (round(share * side) for share in self.offset)
        pad = abs(dx) + dy + round(3 * self.softness * side)
        dark = cv2.copyMakeBorder(
            piece.alpha_hw, pad + dy, pad - dy, pad + dx, pad - dx, cv2.BORDER_CONSTANT
        )
        dark = cv2.GaussianBlur(dark, (0, 0), max(0.6, self.softness * side))
        top, left = piece.y - pad, piece.x - pad
        y0, x0 = max(0, top), max(0, left)
        window = image_3HW[:, y0 : top + h + 2 * pad, x0 : left + w + 2 * pad]
        window *= (
            1
            - np.float32(self.depth)
            * dark[y0 - top :, x0 - left :][: window.shape[1], : window.shape[2]]
        )


def _place(
    rng: np.random.Generator,
    image_3HW: np.ndarray,
    instance_HW: np.ndarray,
    behind: list[Cutout],
    sprites: SpriteLibrary,
    most: float,
) -> Cutout | None:
    """Something where it may lie in front of those that are there, or None when no attempt found a
    place.
    """
    for _ in range(CASTS):
        name, twin = _name(rng, behind, sprites)
        extent = (
            min(instance_HW.shape) * EXTENT[0] * (most / EXTENT[0]) ** float(rng.beta(*EXTREMES))
        )
        piece = (
            _cut_sprite(rng, name, twin, extent, sprites)
            if name in sprites.numbers_of
            else _cut_plain(rng, name, extent)
        )
        for _ in range(PLACES):
            moved = _somewhere(rng, piece, instance_HW.shape)
            if _fits(moved, image_3HW, instance_HW, behind):
                return moved
    return None


def _name(
    rng: np.random.Generator, behind: list[Cutout], sprites: SpriteLibrary
) -> tuple[str, bool]:
    """What to draw next, and whether the scene has one already."""
    names = [piece.name for piece in behind]
    if names and rng.random() < TWIN_SHARE:
        return names[rng.integers(len(names))], True
    while True:
        options = SHAPES if rng.random() < SHAPE_SHARE else sprites.nouns
        name = options[rng.integers(len(options))]
        if not any(alike(name, other) for other in names):
            return name, name in names


def _cut_sprite(
    rng: np.random.Generator, name: str, twin: bool, extent: float, sprites: SpriteLibrary
) -> Cutout:
    """One of the noun's sprites, turned, perhaps flipped, in colours a little or much off its
    own.
    """
    numbers = sprites.numbers_of[name]
    number = numbers[rng.integers(len(numbers))]
    pixels = sprites.pixels_NSS4[number]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = _jitter(rng, pixels, rng.random() < RECOLOURED[twin])
    patch = _turn(pixels, float(rng.uniform(-TURN, TURN)), extent)
    alpha = patch[..., 3] / np.float32(255)
    paint = np.ascontiguousarray(patch[..., :3].transpose(2, 0, 1), dtype=np.float32)
    return Cutout(
        name=name, alpha_hw=alpha, y=0, x=0, paint_3hw=paint, style=sprites.style_of(number)
    )


def _jitter(rng: np.random.Generator, pixels_SS4: np.ndarray, recoloured: bool) -> np.ndarray:
    """Other saturation and brightness and a nearby hue, or any; alpha multiplied in, uint8."""
    hue = rng.uniform(20, 160) if recoloured else rng.uniform(-3, 3)  # OpenCV's half degrees
    level = np.arange(256, dtype=np.float32)
    saturation, value = (
        np.minimum(level * np.float32(rng.uniform(0.85, most)), 255) for most in (1.15, 1.1)
    )
    table = np.stack([(level + np.float32(hue)) % 180, saturation, value], axis=-1).astype(np.uint8)
    rgba = np.ascontiguousarray(pixels_SS4)
    hsv = cv2.LUT(cv2.cvtColor(rgba[..., :3], cv2.COLOR_RGB2HSV), table[None])
    alpha = rgba[..., 3]
    rgb = cv2.multiply(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), cv2.merge([alpha] * 3), scale=1 / 255)
    return np.dstack([rgb, alpha])


def _turn(pixels_SS4: np.ndarray, degrees: float, extent: float) -> np.ndarray:
    """The sprite turned, cut out, and resized so that its longer side is `extent` pixels, uint8 (h,
    w, 4).
    """
    side = pixels_SS4.shape[0]
    wide = int(side * 1.45)
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1.0)
    turn[:, 2] += (wide - side) / 2
    turned = cv2.warpAffine(pixels_SS4, turn, (wide, wide), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect(turned[..., 3])
    scale = extent / max(w, h)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return cv2.resize(
        turned[y : y + h, x : x + w],
        size,
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )


def _cut_plain(rng: np.random.Generator, name: str, extent: float) -> Cutout:
    """A plain shape in a plain colour, a little darker towards its foot."""
    side = round(1.6 * extent) + 2 * MARGIN
    alpha, _, _ = cut_shape(
        rng, name, extent / 2.3, (side, side)
    )  # the widest outline is 2.3 radii
    shade = np.linspace(1.0, rng.uniform(0.88, 1.0), alpha.shape[0], dtype=np.float32)
    colour = shape_rgb(rng, COLOURS[rng.integers(len(COLOURS))])
    return Cutout(
        name=name,
        alpha_hw=alpha,
        y=0,
        x=0,
        paint_3hw=colour[:, None, None] * (alpha * shade[:, None]),
        style=None,
    )


def _somewhere(rng: np.random.Generator, piece: Cutout, size: tuple[int, ...]) -> Cutout:
    """The piece anywhere in an image of `size` (height, width), at least MARGIN pixels from its
    border.
    """
    room = np.array(size) - 2 * MARGIN - piece.alpha_hw.shape
    y, x = (int(rng.integers(0, max(1, space + 1))) + MARGIN for space in room)
    return Cutout(
        name=piece.name,
        alpha_hw=piece.alpha_hw,
        y=y,
        x=x,
        paint_3hw=piece.paint_3hw,
        style=piece.style,
    )


def _fits(
    piece: Cutout, image_3HW: np.ndarray, instance_HW: np.ndarray, behind: list[Cutout]
) -> bool:
    """Whether all behind stay visible enough, and the border to whatever is near can be seen."""
    near = {index: behind[index] for index in piece.near(instance_HW)}
    mean = piece.mean_3
    if any(
        other.name == piece.name or np.abs(other.mean_3 - mean).max() < OBJECT_CONTRAST
        for other in near.values()
    ):
        return False
    ground = piece.window(image_3HW)[:, ::2, ::2].mean(axis=(1, 2))
    return bool(np.abs(ground - mean).max() >= CONTRAST) and leaves_visible(
        piece, instance_HW, near
    )


def _seen(
    pixels_HW3: np.ndarray, instance_HW: np.ndarray, index: int, piece: Cutout
) -> SceneObject:
    mask, box = visible(instance_HW, index)
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1] > 0
    colour, could_be = colours_of(pixels_HW3[y0:y1, x0:x1][inside])
    extent = max(x1 - x0, y1 - y0) / min(instance_HW.shape)
    size_name = next((name for name, most in SIZE_NAMES.items() if extent <= most), "large")
    return SceneObject(
        name=piece.name,
        colour=colour,
        size_name=size_name,
        mask_HW=mask,
        box=box,
        style=piece.style,
        could_be=could_be,
    )
