"""Scenes of coloured shapes and the expressions that single out one of them.

Everything is a function of a seed. Masks are exact: an object's mask is where it covers more than half a pixel and
nothing in front of it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ellipse", "diamond", "cross", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
HUE = {"red": 0, "orange": 14, "yellow": 29, "green": 60, "cyan": 91, "blue": 114, "purple": 142}  # OpenCV's half degrees
SIZES = {"small": (0.15, 0.22), "large": (0.32, 0.44)}  # diameter, unit of the short side
TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS = range(10**8), range(10**8, 2 * 10**8), range(2 * 10**8, 3 * 10**8)
ORDINALS = ("first", "second", "third", "fourth")
SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, sign of increasing order
VOCABULARY = tuple(sorted({
    *SHAPES, *COLOURS, *SIZES, *ORDINALS, *SIDES, "leftmost", "rightmost", "topmost", "bottommost", "last",
    "the", "on", "at", "from", "in", "object", "shape", "one",
}))  # fmt: skip
MIN_GAP = 0.06  # of the side: centres closer than this along an axis have no order
MIN_VISIBLE = 0.6
SUB = 4  # sub-pixels per pixel along each axis


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
OUTLINES: dict[str, tuple[Callable[[], np.ndarray], float]] = {
    "circle": (lambda: _regular(48), 0.0),
    "square": (lambda: 0.82 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]]), 0.2),
    "triangle": (lambda: 1.1 * _regular(3), 0.35),
    "star": (_star, 0.3),
    "ellipse": (lambda: _regular(48) * (1.15, 0.62), 0.5),
    "diamond": (lambda: np.array([[0, -1.15], [0.72, 0], [0, 1.15], [-0.72, 0]]), 0.15),
    "cross": (_cross, 0.2),
    "heart": (_heart, 0.25),
}


def make_scene(seed: int, *, height: int | None = None, width: int | None = None, n_objects: tuple[int, int] = (2, 6)) -> Scene:
    """The scene of a seed. Without a size: short side 112-120 pixels, long side up to 1.4 times that."""
    rng = np.random.default_rng((seed, 7))
    height, width = _draw_size(rng, height, width)
    image = _background(rng, height, width)
    instance = np.full((height, width), -1, np.int16)
    pool = _pool(rng)
    names: list[tuple[str, str, str]] = []
    full: list[int] = []
    for _ in range(int(rng.integers(n_objects[0], n_objects[1] + 1))):
        for _attempt in range(12):
            name = tuple(str(rng.choice(options)) for options in pool)
            alpha, origin = _shape(rng, name[0], name[2], height, width)
            if _fits(instance, alpha, origin, full):
                break
        else:
            continue
        _paint(rng, image, alpha, origin, name[1])
        y, x = origin
        window = instance[y : y + alpha.shape[0], x : x + alpha.shape[1]]
        window[alpha > 0.5] = len(names)
        names.append(name)
        full.append(int((alpha > 0.5).sum()))
    noise = rng.normal(0, rng.uniform(1, 7), image.shape[:2])[..., None]
    pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    objects = tuple(_visible(instance, index, name) for index, name in enumerate(names))
    return Scene(image_HW3=pixels, objects=objects, instance_HW=instance)


def _draw_size(rng: np.random.Generator, height: int | None, width: int | None) -> tuple[int, int]:
    short = int(rng.integers(112, 121))
    long = int(short * rng.uniform(1.0, 1.4))
    drawn = (short, long) if rng.random() < 0.5 else (long, short)
    return height or drawn[0], width or drawn[1]


def _pool(rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """What objects are drawn from. Half the scenes have few shapes or few colours, so that they must be told apart otherwise."""
    shapes, colours = list(SHAPES), list(COLOURS)
    kind = rng.random()
    if kind < 0.3:
        shapes = list(rng.choice(shapes, int(rng.integers(1, 3)), replace=False))
    elif kind < 0.5:
        colours = list(rng.choice(colours, int(rng.integers(1, 3)), replace=False))
    return shapes, colours, list(SIZES)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Muted texture, float32 (H, W, 3) in 0..255: two close colours mixed by a pattern."""
    base = rng.uniform(35, 175)
    first, second = (base + rng.uniform(-22, 22, 3) + rng.uniform(-25, 25) for _ in range(2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40) * min(height, width) / 120
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.integers(0, 5)
    if kind == 0:
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif kind == 2:
        mix = ((x // period + y // period) % 2).astype(np.float32)
    elif kind == 3:
        coarse = rng.random((6, 6), dtype=np.float32)
        mix = np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    else:
        fine = rng.random((height // 3 + 1, width // 3 + 1), dtype=np.float32)
        mix = cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)
    return (first + (second - first) * mix[..., None]).astype(np.float32)


def _shape(rng: np.random.Generator, shape: str, size_name: str, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Coverage of the object on its own patch of pixels (float32 in 0..1), and the patch's (y, x) in the image."""
    outline, turn = OUTLINES[shape]
    radius = min(height, width) * rng.uniform(*SIZES[size_name]) / 2
    angle = rng.uniform(-turn, turn)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = radius * outline() @ rotation
    low, high = points.min(0), points.max(0)
    span = high - low
    place = np.array([rng.uniform(1, max(side - 2 - s, 1.5)) for side, s in zip((width, height), span, strict=True)])
    origin = np.floor(place).astype(int)
    extent = np.ceil(place + span).astype(int) + 1 - origin
    local = (points - low + (place - origin)) * SUB * 16
    canvas = np.zeros((extent[1] * SUB, extent[0] * SUB), np.uint8)
    cv2.fillPoly(canvas, [np.rint(local - 8).astype(np.int32)], 255, shift=4)
    alpha = cv2.resize(canvas, (int(extent[0]), int(extent[1])), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    y, x = int(origin[1]), int(origin[0])
    return alpha[: height - y, : width - x], (y, x)


def _fits(instance: np.ndarray, alpha: np.ndarray, origin: tuple[int, int], full: list[int]) -> bool:
    """Whether every object behind stays visible enough."""
    y, x = origin
    hidden = instance.copy()
    window = hidden[y : y + alpha.shape[0], x : x + alpha.shape[1]]
    touched = np.unique(window[alpha > 0.5])
    window[alpha > 0.5] = -1
    return all((hidden == index).sum() >= MIN_VISIBLE * full[index] for index in touched if index >= 0)


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, origin: tuple[int, int], colour: str) -> None:
    y, x = origin
    window = image[y : y + alpha.shape[0], x : x + alpha.shape[1]]
    if colour == "white":
        rgb = np.array([rng.uniform(235, 255)] * 3)
    else:
        hsv = np.array([[[(HUE[colour] + rng.uniform(-4, 4)) % 180, rng.uniform(190, 255), rng.uniform(190, 255)]]]).astype(np.uint8)
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    shade = np.linspace(1.0, rng.uniform(0.8, 1.0), alpha.shape[0])[:, None, None]
    window += alpha[..., None] * (rgb * shade - window)


def _visible(instance: np.ndarray, index: int, name: tuple[str, str, str]) -> SceneObject:
    mask = (instance == index).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    return SceneObject(shape=name[0], colour=name[1], size_name=name[2], mask_HW=mask, box=(x, y, x + w, y + h))


def expressions(scene: Scene, seed: int) -> list[Expression]:
    """Every expression of every kind that names exactly one object, in an order drawn from the seed."""
    found = [*_attributes(scene), *_positions(scene)]
    order = np.random.default_rng((seed, 11)).permutation(len(found))
    return [found[index] for index in order]


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


def _attributes(scene: Scene) -> Iterator[Expression]:
    for target, thing in enumerate(scene.objects):
        for phrase, fits in _descriptions(thing):
            if sum(map(fits, scene.objects)) == 1:
                article = "" if (target + len(phrase)) % 3 == 0 else "the "
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
