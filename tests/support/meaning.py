"""The meaning of an expression, worked out slowly from the pixels of a scene.

Nothing of the grammar's own code is used.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from wordmask.model.scenes.colours import BOXES
from wordmask.model.scenes.compose import Scene

RANKS = {"first": 0, "second": 1, "third": 2, "fourth": 3}
SIDES = {
    "left": ("x", 1),
    "right": ("x", -1),
    "top": ("y", 1),
    "bottom": ("y", -1),
    "upper": ("y", 1),
    "lower": ("y", -1),
}
MOST = {
    "leftmost": "left",
    "far left": "left",
    "rightmost": "right",
    "far right": "right",
    "topmost": "top",
    "uppermost": "top",
    "highest": "top",
    "bottommost": "bottom",
    "lowest": "bottom",
}
SIZES = {
    "small": -1,
    "little": -1,
    "tiny": -1,
    "smallest": -1,
    "tiniest": -1,
    "big": 1,
    "large": 1,
    "biggest": 1,
    "largest": 1,
}
BESIDE = {
    "left of": "left",
    "to the left of": "left",
    "on the left side of": "left",
    "right of": "right",
    "to the right of": "right",
    "on the right side of": "right",
    "above": "top",
    "over": "top",
    "higher up than": "top",
    "below": "bottom",
    "under": "bottom",
    "beneath": "bottom",
}


@dataclass(frozen=True)
class Thing:
    """Centre in unit of the short side, longer side, area, and the share of each colour."""

    name: str
    x: float
    y: float
    side: float
    area: float
    shares: dict[str, float]


@dataclass(frozen=True)
class World:
    things: tuple[Thing, ...]
    width: float
    height: float

    def shaken(self, rng: np.random.Generator, move: float, grow: float) -> World:
        """Every centre moved and every size changed a little: what is beyond doubt stays so."""
        return replace(self, things=tuple(_shake(thing, rng, move, grow) for thing in self.things))


def _shake(thing: Thing, rng: np.random.Generator, move: float, grow: float) -> Thing:
    scale = float(rng.uniform(1 - grow, 1 + grow))
    dx, dy = rng.uniform(-move, move, 2).tolist()
    return replace(
        thing, x=thing.x + dx, y=thing.y + dy, side=thing.side * scale, area=thing.area * scale
    )


def world_of(scene: Scene) -> World:
    """A scene from its image, its instance map and its names."""
    short = min(scene.instance_HW.shape)
    things = []
    for index, thing in enumerate(scene.objects):
        ys, xs = np.nonzero(scene.instance_HW == index)
        x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
        shares = _shares(scene.image_HW3[ys, xs])
        things.append(
            Thing(
                thing.name,
                (x0 + x1) / 2 / short,
                (y0 + y1) / 2 / short,
                max(x1 - x0, y1 - y0),
                len(xs),
                shares,
            )
        )
    height, width = scene.instance_HW.shape
    return World(tuple(things), width / short, height / short)


def _shares(pixels: np.ndarray) -> dict[str, float]:
    seen = [colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in pixels[:: max(1, len(pixels) // 400)]]
    return {
        name: sum(any(_in(hsv, box) for box in boxes) for hsv in seen) / len(seen)
        for name, boxes in BOXES.items()
    }


def _in(hsv: tuple[float, float, float], box: tuple[tuple[float, float], ...]) -> bool:
    (low, high), *rest = box
    hue = 360 * hsv[0]
    around = low <= hue <= high if low <= high else hue >= low or hue <= high
    return around and all(
        least <= value <= most for value, (least, most) in zip(hsv[1:], rest, strict=True)
    )


def meant(world: World, text: str) -> set[int]:
    """The objects that a text could mean."""
    text = text.removeprefix("the ").replace("thing", "object").replace("grey", "gray")
    return _first_that_matches(PATTERNS, world, text, otherwise=simple)


def _nearest(world: World, phrase: str, how: str, anchor: str) -> set[int]:
    (mark,) = simple(world, anchor)
    others = sorted(simple(world, phrase) - {mark}, key=lambda i: _distance(world, i, mark))
    return {others[-1] if how == "farthest from" else others[0]} if others else set()


def _distance(world: World, a: int, b: int) -> float:
    return float(
        np.hypot(world.things[a].x - world.things[b].x, world.things[a].y - world.things[b].y)
    )


def _between(world: World, phrase: str, first: str, second: str) -> set[int]:
    (a,), (b,) = simple(world, first), simple(world, second)
    start, end = (np.array([world.things[i].x, world.things[i].y]) for i in (a, b))
    way = end - start
    found = set()
    for i in simple(world, phrase) - {a, b}:
        off = np.array([world.things[i].x, world.things[i].y]) - start
        along = off @ way / (way @ way)
        if 0.075 < along < 0.925 and np.linalg.norm(off - along * way) < 0.3 * np.linalg.norm(way):
            found.add(i)
    return found


def _sized(world: World, phrase: str, how: str, anchor: str) -> set[int]:
    (mark,) = simple(world, anchor)
    sign = -1 if how == "smaller" else 1
    return {
        i
        for i in simple(world, phrase) - {mark}
        if sign * world.things[i].area > sign * world.things[mark].area
    }


def _same_colour(world: World, phrase: str, anchor: str) -> set[int]:
    (mark,) = simple(world, anchor)
    shares = world.things[mark].shares
    colour = max(shares, key=shares.__getitem__)
    return {i for i in simple(world, phrase) - {mark} if world.things[i].shares[colour] > 0.35}


def _beside(world: World, phrase: str, how: str, anchor: str) -> set[int]:
    marks = simple(world, anchor)
    axis, sign = SIDES[BESIDE[how]]
    return {
        i
        for i in simple(world, phrase)
        for mark in marks - {i}
        if sign * _along(world, i, axis) < sign * _along(world, mark, axis)
    }


def _along(world: World, i: int, axis: str) -> float:
    return float(getattr(world.things[i], axis))


def _without(world: World, phrase: str, colour: str) -> set[int]:
    return {i for i in simple(world, phrase) if world.things[i].shares[colour] < 0.35}


PATTERNS: list[tuple[str, Callable[..., set[int]]]] = [
    (r"(.+?) (closest to|nearest to|farthest from|next to|beside|by) the (.+)", _nearest),
    (r"(.+?) between the (.+) and the (.+)", _between),
    (r"(.+?) (bigger|larger|smaller) than the (.+)", _sized),
    (r"(.+?) (?:with|of) the same color as the (.+)", _same_colour),
    (rf"(.+?) ({'|'.join(sorted(BESIDE, key=len, reverse=True))}) the (.+)", _beside),
    (r"(.+?) (?:that is not|that isn't) (\w+)", _without),
]


def simple(world: World, phrase: str) -> set[int]:
    """The objects of a phrase that is about no other object."""
    return _first_that_matches(SIMPLE, world, phrase, otherwise=_named)


def _first_that_matches(
    patterns: list[tuple[str, Callable[..., set[int]]]],
    world: World,
    text: str,
    *,
    otherwise: Callable[[World, str], set[int]],
) -> set[int]:
    for pattern, evaluate in patterns:
        found = re.fullmatch(pattern, text)
        if found:
            return evaluate(world, *found.groups())
    return otherwise(world, text)


def _ranked(world: World, rank: str, phrase: str, side: str) -> set[int]:
    axis, sign = SIDES[side]
    order = sorted(_named(world, phrase), key=lambda i: sign * _along(world, i, axis))
    return set(order[RANKS[rank] : RANKS[rank] + 1])


def _extreme(world: World, word: str, phrase: str) -> set[int]:
    return _ranked(world, "first", phrase, MOST.get(word, word))


def _in_size(world: World, rank: str | None, word: str, phrase: str) -> set[int]:
    order = sorted(_named(world, phrase), key=lambda i: -SIZES[word] * world.things[i].area)
    return {order[RANKS[(rank or "first").strip()]]}


def _in_corner(world: World, vertical: str, horizontal: str, phrase: str) -> set[int]:
    spans = {"x": world.width, "y": world.height}
    sides = [SIDES[vertical], SIDES[horizontal]]
    near = {
        i: [_along(world, i, axis) / spans[axis] for axis, _ in sides]
        for i in _named(world, phrase)
    }
    return {
        i
        for i, shares in near.items()
        if all(
            (s if sign > 0 else 1 - s) < 0.44 for s, (_, sign) in zip(shares, sides, strict=True)
        )
    }


def _in_middle(world: World, phrase: str) -> set[int]:
    group = _named(world, phrase)
    spread = {axis: np.ptp([_along(world, i, axis) for i in group]) for axis in "xy"}
    order = sorted(group, key=lambda i: _along(world, i, max(spread, key=spread.__getitem__)))
    assert len(order) == 3
    return {order[1]}


_EDGE = "left|right|top|bottom|upper|lower"
SIMPLE: list[tuple[str, Callable[..., set[int]]]] = [
    (rf"({'|'.join(RANKS)}) (.+) from the ({_EDGE})", _ranked),
    (rf"(second )?({'|'.join(SIZES)}) (.+)", _in_size),
    (rf"({'|'.join(MOST)}) (.+)", _extreme),
    (
        r"(.+) in the (top|upper|bottom|lower) (left|right) corner",
        lambda w, p, v, h: _in_corner(w, v, h, p),
    ),
    (r"(top|upper|bottom|lower) (left|right) (.+)", _in_corner),
    (r"middle (.+)", _in_middle),
    (r"(.+) in the middle", _in_middle),
    (rf"(.+) (?:on|at) the ({_EDGE})(?: side)?", lambda w, p, s: _extreme(w, s, p)),
    (r"(.+) on (top)", lambda w, p, s: _extreme(w, s, p)),
    (rf"({_EDGE}) (.+)", _extreme),
]


def _named(world: World, phrase: str) -> set[int]:
    """The objects of a noun, perhaps of a colour."""
    first, _, rest = phrase.partition(" ")
    colour, noun = (first, rest) if first in BOXES else (None, phrase)
    group = {i for i, thing in enumerate(world.things) if noun in ("object", thing.name)}
    return group if colour is None else {i for i in group if world.things[i].shares[colour] > 0.35}
