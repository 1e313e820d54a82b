"""Scenes of coloured shapes and the expressions that single out one of them.

Everything is a function of a seed. Masks are exact: an object's mask is where it covers more than half a pixel and
nothing in front of it does. Colours, shapes and backgrounds vary only as far as every name stays beyond doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ellipse", "diamond", "cross", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
HUE = {"red": 0, "orange": 14, "yellow": 29, "green": 60, "cyan": 91, "blue": 114, "purple": 142}  # OpenCV's half degrees
VALUE = (205, 255)  # HSV; a darker orange is brown, a darker yellow olive
SIZES = {"small": (0.15, 0.22), "large": (0.32, 0.44)}  # diameter, unit of the short side
TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS = range(10**8), range(10**8, 2 * 10**8), range(2 * 10**8, 3 * 10**8)
ORDINALS = ("first", "second", "third", "fourth")
SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, sign of increasing order
# "last", "in" and "one" are in no expression yet. They stay: the ids of every later word, so trained weights, hang on them.
VOCABULARY = tuple(sorted({
    *SHAPES, *COLOURS, *SIZES, *ORDINALS, *SIDES, "leftmost", "rightmost", "topmost", "bottommost", "last",
    "the", "on", "at", "from", "in", "object", "shape", "one",
}))  # fmt: skip
MIN_GAP = 0.06  # of the side: centres closer than this along an axis have no order
MIN_VISIBLE = 0.6  # of an object's own area
MIN_SIDE = 32  # pixels: below it a small object is too few pixels to have a shape
MAX_ASPECT = 1.4  # of a drawn size
SUB = 8  # sub-pixels per pixel along each axis; OpenCV fills half a one past the outline
MARGIN = 2  # pixels: least distance to the border of the image, and between objects of one colour
ATTEMPTS = 12  # to place an object, before it is left out


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object. `mask_HW` uint8 is what is visible of it, `box` (x_min, y_min, x_max, y_max) that mask's, pixels."""

    shape: str
    colour: str
    size_name: str
    mask_HW: np.ndarray
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`image_HW3` uint8 RGB; objects back to front; `instance_HW` int16: index of the visible object, -1 for background."""

    image_HW3: np.ndarray
    objects: tuple[SceneObject, ...]
    instance_HW: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Expression:
    """`text` names object number `target` and no other; `kind` is "attribute", "position" or "ordinal"."""

    text: str
    target: int
    kind: str


def _regular(n: int, phase: float = 0.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n - np.pi / 2 + phase
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2.5) / 17], axis=1)


def _star() -> np.ndarray:
    return _regular(10) * np.where(np.arange(10) % 2, 0.42, 1.08)[:, None]


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([[arm, -1], [arm, -arm], [1, -arm]])
    turns = [quarter @ np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
    return np.concatenate(turns)


# Outline in units of the radius, and by how much (radians) it may be turned without becoming another shape.
OUTLINES: dict[str, tuple[np.ndarray, float]] = {
    "circle": (_regular(48), 0.0),
    "square": (0.82 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]]), 0.2),
    "triangle": (1.1 * _regular(3), 0.35),
    "star": (_star(), 0.3),
    "ellipse": (_regular(48) * (1.15, 0.62), 0.5),
    "diamond": (np.array([[0, -1.15], [0.72, 0], [0, 1.15], [-0.72, 0]]), 0.15),
    "cross": (_cross(), 0.2),
    "heart": (_heart(), 0.25),
}


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """An object about to be painted: what it is, its coverage of a patch of pixels (0..1), and the patch's place."""

    shape: str
    colour: str
    size_name: str
    alpha_hw: np.ndarray
    y: int
    x: int

    @property
    def cover_hw(self) -> np.ndarray:
        return self.alpha_hw > 0.5

    def window(self, image: np.ndarray) -> np.ndarray:
        """The patch as a view of (..., H, W)."""
        return image[..., self.y : self.y + self.alpha_hw.shape[0], self.x : self.x + self.alpha_hw.shape[1]]


def make_scene(seed: int, *, height: int | None = None, width: int | None = None, n_objects: tuple[int, int] = (2, 6)) -> Scene:
    """The scene of a seed, of `n_objects` (fewest, most) objects, fewer only where there is no room left for one.

    Without a size: short side 112-120 pixels, long side up to 1.4 times that; of one side alone, the other follows it
    by up to 1.4. ValueError for a side under 32 pixels, or counts that are negative or the wrong way round.
    """
    _check(height, width, n_objects)
    rng = np.random.default_rng((seed, 7))
    height, width = _draw_size(rng, height, width)
    image_3HW = _background(rng, height, width)
    instance_HW = np.full((height, width), -1, np.int16)
    pool = _pool(rng)
    pieces: list[_Piece] = []
    for _ in range(int(rng.integers(n_objects[0], n_objects[1] + 1))):
        piece = _place(rng, pool, instance_HW, pieces)
        if piece is not None:
            _paint(rng, image_3HW, piece)
            piece.window(instance_HW)[piece.cover_hw] = len(pieces)
            pieces.append(piece)
    image_3HW += rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1, 7))
    pixels = cv2.merge(list(np.clip(image_3HW, 0, 255).astype(np.uint8)))
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


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Muted texture, float32 (3, H, W) in 0..255: two close colours mixed by a pattern, dark enough for white to show."""
    base = rng.uniform(35, 140)
    first, second = ((base + rng.uniform(-22, 22, 3) + rng.uniform(-25, 25)).astype(np.float32) for _ in range(2))
    mix_HW = _pattern(rng, height, width)
    return first[:, None, None] + (second - first)[:, None, None] * mix_HW


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Gradient, stripes, checker, blobs or grain, float32 (H, W) in 0..1, as coarse as the image is large."""
    scale = min(height, width) / 120
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40) * scale
    kind = rng.integers(0, 5)
    if kind < 2:
        along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        return (along - along.min()) / np.ptp(along) if kind == 0 else 0.5 + 0.5 * np.sin(np.float32(2 * np.pi / period) * along)
    if kind == 2:
        return (x // period + y // period).astype(np.float32) % 2
    if kind == 3:
        return np.clip(cv2.resize(rng.random((6, 6), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    grain = max(1, round(3 * scale))
    fine = rng.random((height // grain + 1, width // grain + 1), dtype=np.float32)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)


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
    outline, turn = OUTLINES[shape]
    radius = min(size) * rng.uniform(*SIZES[size_name]) / 2
    angle = rng.uniform(-turn, turn)
    points = radius * outline @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low = points.min(axis=0)
    span = points.max(axis=0) - low
    place = rng.uniform(MARGIN, np.array(size[::-1]) - MARGIN - span)
    origin = np.floor(place).astype(int) - MARGIN
    w, h = (int(n) for n in np.ceil(place + span).astype(int) + MARGIN - origin)
    canvas = np.zeros((h * SUB, w * SUB), np.uint8)
    local = (points - low + place - origin) * SUB - 0.5  # OpenCV's polygon coordinates are pixel centres
    cv2.fillPoly(canvas, [np.rint(local * 16).astype(np.int32)], 255, shift=4)
    alpha = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return _Piece(shape=shape, colour=colour, size_name=size_name, alpha_hw=alpha, y=int(origin[1]), x=int(origin[0]))


def _fits(piece: _Piece, instance_HW: np.ndarray, behind: list[_Piece]) -> bool:
    """Whether every object behind stays visible enough, and none near has the same colour: their border could not be seen."""
    window = piece.window(instance_HW)
    near = cv2.dilate(piece.cover_hw.astype(np.uint8), np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)) > 0
    close = set(window[near].tolist()) - {-1}
    if any(behind[index].colour == piece.colour for index in close):
        return False
    hidden = window[piece.cover_hw]
    return all((instance_HW == index).sum() - (hidden == index).sum() >= MIN_VISIBLE * behind[index].cover_hw.sum() for index in close)


def _paint(rng: np.random.Generator, image_3HW: np.ndarray, piece: _Piece) -> None:
    """Blend the object in by its coverage, a little darker towards its foot."""
    shade = np.linspace(1.0, rng.uniform(0.88, 1.0), piece.alpha_hw.shape[0], dtype=np.float32)
    window = piece.window(image_3HW)
    window += piece.alpha_hw * (_rgb(rng, piece.colour)[:, None, None] * shade[:, None] - window)


def _rgb(rng: np.random.Generator, colour: str) -> np.ndarray:
    """A colour of that name, float32 (3,) in 0..255."""
    if colour == "white":
        return np.full(3, rng.uniform(235, 255), np.float32)
    hsv = np.array([[[(HUE[colour] + rng.uniform(-3, 3)) % 180, rng.uniform(190, 255), rng.uniform(*VALUE)]]])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def _visible(instance_HW: np.ndarray, index: int, piece: _Piece) -> SceneObject:
    mask = (instance_HW == index).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    return SceneObject(shape=piece.shape, colour=piece.colour, size_name=piece.size_name, mask_HW=mask, box=(x, y, x + w, y + h))


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
