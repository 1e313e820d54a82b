"""Scenes of things with names: sprites and a few plain shapes, some more than once and not alike.

Everything is a function of a seed. Masks are exact: an object's mask is where it covers more than
half a pixel and nothing in front of it does. Objects may hide one another a little. No two in a
scene could be called by one word unless they have the same name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.random import Generator

from wordmask.model.scenes.backgrounds import draw_background
from wordmask.model.scenes.canvas import (
    BACKGROUND,
    MARGIN,
    Scene,
    SceneObject,
    add_grain,
    leaves_visible,
    visible,
)
from wordmask.model.scenes.colours import colours_of
from wordmask.model.scenes.cutouts import Cutout, Shadows, cut_plain, cut_sprite
from wordmask.model.scenes.nouns import alike
from wordmask.model.scenes.shapes import SHAPES
from wordmask.model.scenes.sprites import SpriteLibrary

MIN_SIDE = 32  # pixels: below it a small object is too few pixels to have a shape
SHORT_SIDE = (112, 120)  # pixels of a scene without a given size
MAX_ASPECT = 1.4  # of a size that is not given
OBJECTS = (1, 7)  # fewest, most
SHAPE_SHARE = 0.2  # of objects that are plain shapes
TWIN_SHARE = 0.5  # of objects that have the name of one before them: something else tells them
RECOLOURED, TWIN_RECOLOURED = 0.1, 0.4  # share of objects, of twins, painted in another hue
EXTENT = (0.2, 0.58)  # longer side of an object, unit of the image's short side
# Of the beta distribution of sizes on a logarithmic scale: more small and large ones than middling.
EXTREMES = (0.6, 0.6)
CROWD = 4  # objects; where there are more, none is larger than CROWD_EXTENT
CROWD_EXTENT = 0.4
# Longer side up to this, unit of the short side; "large" beyond.
SIZE_NAMES = {"small": 0.26, "medium": 0.38}
CONTRAST = 30  # of 255, in some channel: least difference in mean colour from the background
OBJECT_CONTRAST = 45  # and from an object that it touches
CASTS = 3  # to find something that can be placed, before an object is left out
POSITIONS = 10  # to try for each


def make_scene(
    seed: int,
    *,
    sprites: SpriteLibrary,
    height: int | None = None,
    width: int | None = None,
    n_objects: tuple[int, int] = OBJECTS,
) -> Scene:
    """Make the scene of a seed.

    Args:
        sprites: what objects that are no plain shapes are cut from.
        height: in pixels; without both, the short side is 112-120 pixels and the long side up to
            1.4 times that. Of one alone, the other follows it by up to 1.4.
        width: in pixels, likewise.
        n_objects: fewest and most; a scene has fewer only where there is no room for one.

    Raises:
        ValueError: for a side under 32 pixels, or counts that are negative or the wrong way round.
    """
    _check(height, width, n_objects)
    rng = np.random.default_rng((seed, 17))
    height, width = _draw_size(rng, height, width)
    image_3HW = draw_background(rng, height, width)
    instance_HW = np.full((height, width), BACKGROUND, np.int16)
    shadows = Shadows.draw(rng)
    pieces: list[Cutout] = []
    fewest, most = n_objects
    count = int(rng.integers(fewest, most + 1))
    max_extent = CROWD_EXTENT if count > CROWD else EXTENT[1]
    for _ in range(count):
        piece = _place(rng, image_3HW, instance_HW, pieces, sprites, max_extent)
        if piece is not None:
            shadows.cast(image_3HW, piece)
            _paint(piece, image_3HW)
            piece.window(instance_HW)[piece.cover_hw] = len(pieces)
            pieces.append(piece)
    image_HW3 = add_grain(image_3HW, rng)
    see = partial(_object, image_HW3, instance_HW)
    objects = [see(index, piece) for index, piece in enumerate(pieces)]
    return Scene(image_HW3=image_HW3, objects=tuple(objects), instance_HW=instance_HW)


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


def _draw_size(rng: Generator, height: int | None, width: int | None) -> tuple[int, int]:
    fewest, most = SHORT_SIDE
    short = int(rng.integers(fewest, most + 1))
    ratio = rng.uniform(1.0, MAX_ASPECT)
    portrait = rng.random() >= 0.5
    if height is not None and width is not None:
        return height, width
    if height is not None:
        return height, _other_side(height, ratio, longer=not portrait)
    if width is not None:
        return _other_side(width, ratio, longer=portrait), width
    long = int(short * ratio)
    return (long, short) if portrait else (short, long)


def _other_side(side: int, ratio: float, *, longer: bool) -> int:
    other = side * ratio if longer else side / ratio
    return max(MIN_SIDE, int(other))


def _place(
    rng: Generator,
    image_3HW: np.ndarray,
    instance_HW: np.ndarray,
    behind: list[Cutout],
    sprites: SpriteLibrary,
    max_extent: float,
) -> Cutout | None:
    """Cut out something and move it to where it may lie in front of the objects so far.

    Returns: None where no attempt found a position.
    """
    short = min(instance_HW.shape)
    min_extent, _ = EXTENT
    for _ in range(CASTS):
        name, is_twin = _draw_name(rng, behind, sprites)
        growth = rng.beta(*EXTREMES)
        extent = short * min_extent * (max_extent / min_extent) ** growth
        if name in sprites.numbers_of:
            recoloured = TWIN_RECOLOURED if is_twin else RECOLOURED
            piece = cut_sprite(rng, sprites, name, recoloured=recoloured, extent=extent)
        else:
            piece = cut_plain(rng, name, extent)
        for _ in range(POSITIONS):
            moved = _move(rng, piece, instance_HW.shape)
            if _fits(moved, image_3HW, instance_HW, behind):
                return moved
    return None


def _draw_name(rng: Generator, behind: list[Cutout], sprites: SpriteLibrary) -> tuple[str, bool]:
    """Draw the name of the next object; return it, and whether the scene has one already."""
    names = [piece.name for piece in behind]
    if names and rng.random() < TWIN_SHARE:
        return names[rng.integers(len(names))], True
    while True:
        options = SHAPES if rng.random() < SHAPE_SHARE else sprites.nouns
        name = options[rng.integers(len(options))]
        if not any(alike(name, other) for other in names):
            return name, name in names


def _move(rng: Generator, piece: Cutout, size: tuple[int, ...]) -> Cutout:
    """Move a piece to anywhere in an image of `size` (height, width), MARGIN from its border."""
    height, width = size
    h, w = piece.alpha_hw.shape
    y = _draw_offset(rng, height - h)
    x = _draw_offset(rng, width - w)
    return replace(piece, y=y, x=x)


def _draw_offset(rng: Generator, space: int) -> int:
    room = max(0, space - 2 * MARGIN)
    return MARGIN + int(rng.integers(0, room + 1))


def _fits(
    piece: Cutout, image_3HW: np.ndarray, instance_HW: np.ndarray, behind: list[Cutout]
) -> bool:
    """Whether the objects behind stay visible, and the border to whatever is near is plain."""
    near = {index: behind[index] for index in piece.near(instance_HW)}
    mean_3 = piece.mean_3
    for other in near.values():
        if other.name == piece.name or _contrast(other.mean_3, mean_3) < OBJECT_CONTRAST:
            return False
    ground_3hw = piece.window(image_3HW)[:, ::2, ::2]
    ground_3 = ground_3hw.mean(axis=(1, 2))
    if _contrast(ground_3, mean_3) < CONTRAST:
        return False
    return leaves_visible(piece, instance_HW, near)


def _contrast(first_3: np.ndarray, second_3: np.ndarray) -> float:
    return float(np.abs(first_3 - second_3).max())


def _paint(piece: Cutout, image_3HW: np.ndarray) -> None:
    window = piece.window(image_3HW)
    window += piece.paint_3hw - window * piece.alpha_hw


def _object(
    image_HW3: np.ndarray, instance_HW: np.ndarray, index: int, piece: Cutout
) -> SceneObject:
    mask_HW, box = visible(instance_HW, index)
    x0, y0, x1, y1 = box
    window = (slice(y0, y1), slice(x0, x1))
    pixels_N3 = image_HW3[window][mask_HW[window] > 0]
    colour, possible_colours = colours_of(pixels_N3)
    extent = max(x1 - x0, y1 - y0) / min(instance_HW.shape)
    return SceneObject(
        name=piece.name,
        colour=colour,
        size_name=_size_name(extent),
        mask_HW=mask_HW,
        box=box,
        style=piece.style,
        possible_colours=possible_colours,
    )


def _size_name(extent: float) -> str:
    for name, most in SIZE_NAMES.items():
        if extent <= most:
            return name
    return "large"
