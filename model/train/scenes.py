"""Scenes, and the expressions that single out one of their objects.

Everything is a function of a seed. Masks are exact: an object's mask is where it covers more than half a pixel and
nothing in front of it does. Without sprites, objects are coloured shapes, and colours, shapes and backgrounds vary only as
far as every name stays beyond doubt: the shipped default model is trained on these, so they stay as they are to the last
byte. With sprites see `model/train/sprite_scenes.py`, and `model/train/expressions.py` for what is said about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.train.backgrounds import muted
from model.train.canvas import MIN_GAP, Piece, Scene, SceneObject, finish, leaves_visible, visible
from model.train.expressions import Expression
from model.train.groups import SIDES
from model.train.shapes import COLOURS, SHAPES, cut_shape, shape_rgb
from model.train.sprite_scenes import draw_sprite_scene
from model.train.sprites import SpriteLibrary
from model.train.templates import ORDINALS

SIZES = {"small": (0.15, 0.22), "large": (0.32, 0.44)}  # diameter, unit of the short side
TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS = range(10**8), range(10**8, 2 * 10**8), range(2 * 10**8, 3 * 10**8)
# "last", "in" and "one" are in no expression yet. They stay: the ids of every later word, so trained weights, hang on them.
VOCABULARY = tuple(sorted({
    *SHAPES, *COLOURS, *SIZES, *ORDINALS, *SIDES, "leftmost", "rightmost", "topmost", "bottommost", "last",
    "the", "on", "at", "from", "in", "object", "shape", "one",
}))  # fmt: skip
MIN_SIDE = 32  # pixels: below it a small object is too few pixels to have a shape
MAX_ASPECT = 1.4  # of a drawn size
ATTEMPTS = 12  # to place an object, before it is left out
SHAPE_OBJECTS = (2, 6)  # fewest, most of a scene without sprites
SPRITE_OBJECTS = (1, 7)  # and with them


@dataclass(frozen=True, kw_only=True)
class _Piece(Piece):
    colour: str
    size_name: str


def make_scene(
    seed: int, *, height: int | None = None, width: int | None = None, n_objects: tuple[int, int] | None = None,
    sprites: SpriteLibrary | None = None,
) -> Scene:  # fmt: skip
    """The scene of a seed, of `n_objects` (fewest, most) objects, fewer only where there is no room left for one.

    Without `sprites` all of them are shapes, with them most are sprites. Without a size: short side 112-120 pixels, long
    side up to 1.4 times that; of one side alone, the other follows it by up to 1.4. Without `n_objects`: 2 to 6 shapes, or
    1 to 7 objects. ValueError for a side under 32 pixels, or counts that are negative or the wrong way round.
    """
    n_objects = n_objects or (SHAPE_OBJECTS if sprites is None else SPRITE_OBJECTS)
    _check(height, width, n_objects)
    rng = np.random.default_rng((seed, 7 if sprites is None else 17))
    height, width = _draw_size(rng, height, width)
    if sprites is None:
        return _draw_shape_scene(rng, height, width, n_objects)
    return draw_sprite_scene(rng, height, width, n_objects, sprites)


def _draw_shape_scene(rng: np.random.Generator, height: int, width: int, n_objects: tuple[int, int]) -> Scene:
    image_3HW = muted(rng, height, width)
    instance_HW = np.full((height, width), -1, np.int16)
    pool = _pool(rng)
    pieces: list[_Piece] = []
    for _ in range(int(rng.integers(n_objects[0], n_objects[1] + 1))):
        piece = _place(rng, pool, instance_HW, pieces)
        if piece is not None:
            _paint(rng, image_3HW, piece)
            piece.window(instance_HW)[piece.cover_hw] = len(pieces)
            pieces.append(piece)
    pixels = finish(image_3HW, rng, 7)
    objects = tuple(_visible(instance_HW, index, piece) for index, piece in enumerate(pieces))
    return Scene(image_HW3=pixels, objects=objects, instance_HW=instance_HW)


def _check(height: int | None, width: int | None, n_objects: tuple[int, int]) -> None:
    for name, side in (("height", height), ("width", width)):
        if side is not None and side < MIN_SIDE:
            raise ValueError(f"{name} {side} is under {MIN_SIDE} pixels, where shapes cannot be told apart: give {MIN_SIDE} or more")
    if not 0 <= n_objects[0] <= n_objects[1]:
        raise ValueError(f"n_objects {n_objects} is not (fewest, most) with 0 <= fewest <= most: give for example (2, 6)")


def _draw_size(rng: np.random.Generator, height: int | None, width: int | None) -> tuple[int, int]:
    short = int(rng.integers(112, 121))
    ratio = rng.uniform(1.0, MAX_ASPECT)
    portrait = rng.random() >= 0.5
    given = height or width
    if given is not None:
        other = max(MIN_SIDE, int(given * ratio if portrait == (height is None) else given / ratio))
        return height or other, width or other
    return (int(short * ratio), short) if portrait else (short, int(short * ratio))


def _pool(rng: np.random.Generator) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """What objects are drawn from. Half the scenes have few shapes or few colours, so that they must be told apart otherwise."""
    shapes: Sequence[str] = SHAPES
    colours: Sequence[str] = COLOURS
    kind = rng.random()
    if kind < 0.3:
        shapes = [str(s) for s in rng.choice(SHAPES, int(rng.integers(1, 3)), replace=False)]
    elif kind < 0.5:
        colours = [str(c) for c in rng.choice(COLOURS, int(rng.integers(1, 3)), replace=False)]
    return shapes, colours, tuple(SIZES)


def _place(rng: np.random.Generator, pool: Sequence[Sequence[str]], instance_HW: np.ndarray, behind: list[_Piece]) -> _Piece | None:
    """An object of the pool where it may lie in front of those that are there, or None when no attempt found a place."""
    for _ in range(ATTEMPTS):
        shape, colour, size_name = (options[rng.integers(len(options))] for options in pool)
        piece = _cut(rng, shape, colour, size_name, instance_HW.shape)
        if _fits(piece, instance_HW, behind):
            return piece
    return None


def _cut(rng: np.random.Generator, shape: str, colour: str, size_name: str, size: tuple[int, ...]) -> _Piece:
    """An object somewhere in an image of `size` (height, width), at least MARGIN pixels from its border."""
    radius = min(size) * rng.uniform(*SIZES[size_name]) / 2
    alpha, y, x = cut_shape(rng, shape, radius, size)
    return _Piece(name=shape, colour=colour, size_name=size_name, alpha_hw=alpha, y=y, x=x)


def _fits(piece: _Piece, instance_HW: np.ndarray, behind: list[_Piece]) -> bool:
    """Whether every object behind stays visible enough, and none near has the same colour: their border could not be seen."""
    near = {index: behind[index] for index in piece.near(instance_HW)}
    if any(other.colour == piece.colour for other in near.values()):
        return False
    return leaves_visible(piece, instance_HW, near)


def _paint(rng: np.random.Generator, image_3HW: np.ndarray, piece: _Piece) -> None:
    """Blend the object in by its coverage, a little darker towards its foot."""
    shade = np.linspace(1.0, rng.uniform(0.88, 1.0), piece.alpha_hw.shape[0], dtype=np.float32)
    window = piece.window(image_3HW)
    window += piece.alpha_hw * (shape_rgb(rng, piece.colour)[:, None, None] * shade[:, None] - window)


def _visible(instance_HW: np.ndarray, index: int, piece: _Piece) -> SceneObject:
    mask, box = visible(instance_HW, index)
    return SceneObject(name=piece.name, colour=piece.colour, size_name=piece.size_name, mask_HW=mask, box=box)


def expressions(scene: Scene, seed: int) -> list[Expression]:
    """Every expression of every kind that names exactly one object, in an order drawn from the seed."""
    rng = np.random.default_rng((seed, 11))
    found = [*_attributes(scene, rng), *_positions(scene)]
    return [found[index] for index in rng.permutation(len(found))]


def pick_expressions(scene: Scene, seed: int, count: int) -> list[Expression]:
    """Up to `count` different expressions, drawn so that kinds stand about 45 : 35 : 20 and targets are balanced."""
    rng = np.random.default_rng((seed, 13))
    left = expressions(scene, seed)
    asked = dict.fromkeys(range(len(scene.objects)), 0)
    picked: list[Expression] = []
    while left and len(picked) < count:
        kind = rng.choice(["attribute", "position", "ordinal"], p=[0.45, 0.35, 0.2])
        candidates = [e for e in left if e.kind == kind] or left
        fewest = min(asked[e.target] for e in candidates)
        chosen = next(e for e in candidates if asked[e.target] == fewest)
        left.remove(chosen)
        asked[chosen.target] += 1
        picked.append(chosen)
    return picked


def _descriptions(thing: SceneObject) -> Iterator[tuple[str, Callable[[SceneObject], bool]]]:
    """Noun phrases that fit the object, each with the test that any object must pass to fit it too."""
    s, c, z = thing.shape, thing.colour, thing.size_name
    yield f"{c} {s}", lambda o: (o.colour, o.shape) == (c, s)
    yield s, lambda o: o.shape == s
    yield f"{c} object", lambda o: o.colour == c
    yield f"{c} shape", lambda o: o.colour == c
    yield f"{z} {s}", lambda o: (o.size_name, o.shape) == (z, s)
    yield f"{z} {c} {s}", lambda o: (o.size_name, o.colour, o.shape) == (z, c, s)
    yield f"{z} {c} object", lambda o: (o.size_name, o.colour) == (z, c)
    yield f"{z} object", lambda o: o.size_name == z


def _attributes(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    for target, thing in enumerate(scene.objects):
        for phrase, fits in _descriptions(thing):
            if sum(map(fits, scene.objects)) == 1:
                article = "the " if rng.random() < 2 / 3 else ""
                yield Expression(text=article + phrase, target=target, kind="attribute")


def _positions(scene: Scene) -> Iterator[Expression]:
    """Extremes and ordinals among the objects that share a description, where centres are far enough apart."""
    seen: set[str] = set()
    everything: Callable[[SceneObject], bool] = lambda _o: True  # noqa: E731
    for thing in scene.objects:
        for phrase, fits in [*_descriptions(thing), ("object", everything)]:
            group = [index for index, o in enumerate(scene.objects) if fits(o)]
            if phrase in seen or len(group) < 2:
                continue
            seen.add(phrase)
            yield from _ordered(scene, phrase, group)


def _ordered(scene: Scene, phrase: str, group: list[int]) -> Iterator[Expression]:
    for side, (axis, sign) in SIDES.items():
        extent = scene.image_HW3.shape[1 - axis]
        place = {index: sign * scene.objects[index].centre[axis] / extent for index in group}
        order = sorted(group, key=place.__getitem__)
        gaps = [place[b] - place[a] for a, b in pairwise(order)]
        if gaps[0] >= MIN_GAP:
            for text in _extreme(side, phrase):
                yield Expression(text=text, target=order[0], kind="position")
        if len(order) >= 3 and min(gaps) >= MIN_GAP:
            for rank, target in enumerate(order[: len(ORDINALS)]):
                yield Expression(text=f"the {ORDINALS[rank]} {phrase} from the {side}", target=target, kind="ordinal")
        elif len(order) == 2 and gaps[0] >= MIN_GAP:
            yield Expression(text=f"the second {phrase} from the {side}", target=order[1], kind="ordinal")


def _extreme(side: str, phrase: str) -> tuple[str, ...]:
    if side in ("left", "right"):
        return f"the {side}most {phrase}", f"the {phrase} on the {side}"
    return f"the {side} {phrase}", f"the {phrase} at the {side}", f"the {side}most {phrase}"
