"""What can be said about a scene: which objects a phrase fits, and how they lie to one another,
each beyond doubt or not at all.

Sets of objects are bit masks. A relation is certain, certainly not so, or too close a call;
`TriState` keeps the first and the last apart, and an expression is made only where nothing is too
close.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from wordmask.model.scenes.canvas import MIN_GAP, Scene, SceneObject

SIZE_RATIO = 1.3  # of longer sides, and of areas: less than this apart, neither is the larger
# of the way across: an object that is less to the left than this share of what it is above is not
# plainly left
CONE = 0.5
NEAR_RATIO = 1.35  # of distances: less than this apart, neither is the closer
NEXT_TO = 0.45  # of the short side: centres further apart are not next to each other
BETWEEN = (
    0.2,
    0.8,
    0.18,
)  # along the line of two anchors from, to; furthest off it, unit of its length
NOT_BETWEEN = (-0.05, 1.05, 0.45)
SIDES = {
    "left": (0, 1),
    "right": (0, -1),
    "top": (1, 1),
    "bottom": (1, -1),
}  # axis, sign of increasing order


class Group(NamedTuple):
    """A phrase without article, and the objects it fits: all of them, and surely no other. `colour`
    is "" where it names none.
    """

    phrase: str
    members: int
    noun: str
    colour: str

    @property
    def count(self) -> int:
        return self.members.bit_count()


class TriState(NamedTuple):
    """Objects of which something is true, and those of which it might be."""

    true: int = 0
    unsure: int = 0

    def only(self, among: int) -> int | None:
        """The one object of `among` of which it is true while it is false of all others, or
        None.
        """
        found = self.true & among
        return (
            found.bit_length() - 1 if found.bit_count() == 1 and not self.unsure & among else None
        )

    def none(self, among: int) -> bool:
        """Whether it is false of all of `among`."""
        return not (self.true | self.unsure) & among


def bits(members: int) -> list[int]:
    """Places of the bits that are set."""
    return [place for place in range(members.bit_length()) if members >> place & 1]


@dataclass(frozen=True)
class SceneRelations:
    """A scene as it can be talked about. `nouns` are all names that a scene might have had objects
    of.
    """

    scene: Scene
    nouns: Sequence[str]

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        return self.scene.objects

    @cached_property
    def everything(self) -> int:
        return (1 << len(self.objects)) - 1

    @cached_property
    def names(self) -> dict[str, int]:
        """The objects of each name."""
        found: dict[str, int] = {}
        for place, thing in enumerate(self.objects):
            found[thing.name] = found.get(thing.name, 0) | 1 << place
        return found

    @cached_property
    def colours(self) -> dict[str, TriState]:
        """The objects of each colour that some object has or could be said to have."""
        found: dict[str, TriState] = {}
        for place, thing in enumerate(self.objects):
            for colour in thing.could_be | ({thing.colour} if thing.colour else set()):
                true, unsure = found.get(colour, TriState())
                mine = 1 << place
                found[colour] = (
                    TriState(true | mine, unsure)
                    if colour == thing.colour
                    else TriState(true, unsure | mine)
                )
        return found

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every phrase of noun and colour that surely fits some objects and surely no other."""
        return tuple(self._groups())

    def _groups(self) -> Iterator[Group]:
        for noun, members in (*self.names.items(), ("object", self.everything)):
            yield Group(noun, members, noun, "")
            for colour, state in self.colours.items():
                if state.true & members and not state.unsure & members:
                    yield Group(f"{colour} {noun}", state.true & members, noun, colour)

    @cached_property
    def anchors(self) -> tuple[tuple[str, int], ...]:
        """Phrases of one object each that others can be related to; a colour is said only where the
        noun is not enough.
        """
        single = [group for group in self.groups if group.count == 1 and group.noun != "object"]
        plain = {group.noun for group in single if not group.colour}
        chosen = [group for group in single if not group.colour or group.noun not in plain]
        return tuple((f"the {group.phrase}", group.members.bit_length() - 1) for group in chosen)

    @cached_property
    def places(self) -> list[tuple[float, float]]:
        """Centre of what is visible of each object, (x, y) in pixels."""
        return [thing.centre for thing in self.objects]

    @cached_property
    def extent(self) -> tuple[int, int]:
        """Width and height of the image."""
        height, width = self.scene.image_HW3.shape[:2]
        return width, height

    @cached_property
    def sizes(self) -> list[tuple[float, float]]:
        """Longer side and area of what is visible of each object, in pixels."""
        return [
            (max(t.box[2] - t.box[0], t.box[3] - t.box[1]), float(t.mask_HW.sum()))
            for t in self.objects
        ]

    def larger(self, a: int, b: int) -> bool:
        """Whether `a` is plainly larger than `b`, by both measures."""
        return all(x >= SIZE_RATIO * y for x, y in zip(self.sizes[a], self.sizes[b], strict=True))

    def by_size(self, members: int, *, smallest_first: bool) -> list[int] | None:
        """Objects in order of size, as far as each is plainly apart from the next; None where not
        even the first is.
        """
        order = sorted(
            bits(members), key=lambda place: self.sizes[place], reverse=not smallest_first
        )
        before = (lambda a, b: self.larger(b, a)) if smallest_first else self.larger
        return _clear(
            order, [all(before(a, b) for b in order[rank + 1 :]) for rank, a in enumerate(order)]
        )

    def by_place(self, members: int, side: str) -> list[int] | None:
        """Objects from a side on, as far as each is plainly apart from the next; None where not
        even the first is.
        """
        axis, sign = SIDES[side]
        along = [sign * place[axis] / self.extent[axis] for place in self.places]
        order = sorted(bits(members), key=along.__getitem__)
        return _clear(order, [along[b] - along[a] >= MIN_GAP for a, b in pairwise(order)])

    def distance(self, a: int, b: int) -> float:
        (ax, ay), (bx, by) = self.places[a], self.places[b]
        return float(((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5)

    def by_distance(self, members: int, anchor: int, *, nearest_first: bool) -> int | None:
        """The nearest (or farthest) object where it plainly is."""
        order = sorted(
            bits(members & ~(1 << anchor)),
            key=lambda place: self.distance(place, anchor),
            reverse=not nearest_first,
        )
        if len(order) < 2:
            return None
        near, far = sorted(self.distance(place, anchor) for place in order[:2])
        return (
            order[0]
            if far >= NEAR_RATIO * near and far - near >= MIN_GAP * min(self.extent)
            else None
        )

    def on_side(self, side: str, anchor: int) -> TriState:
        """Objects that lie to the left of (to the right of, above, below) another."""
        return self._on_side[side, anchor]

    @cached_property
    def _on_side(self) -> dict[tuple[str, int], TriState]:
        places = range(len(self.objects))
        return {(side, anchor): self._beside(side, anchor) for side in SIDES for anchor in places}

    def _beside(self, side: str, anchor: int) -> TriState:
        axis, sign = SIDES[side]
        true = unsure = 0
        for place, centre in enumerate(self.places):
            if place == anchor:
                continue
            along = sign * (self.places[anchor][axis] - centre[axis])
            across = abs(self.places[anchor][1 - axis] - centre[1 - axis])
            least = MIN_GAP * self.extent[axis]
            if along >= least and along >= CONE * across:
                true |= 1 << place
            elif along > -least:
                unsure |= 1 << place
        return TriState(true, unsure)

    def sized_against(self, anchor: int, *, larger: bool) -> TriState:
        """Objects that are larger (or smaller) than another."""
        true = unsure = 0
        for place in range(len(self.objects)):
            if place == anchor:
                continue
            if self.larger(place, anchor) if larger else self.larger(anchor, place):
                true |= 1 << place
            elif not (self.larger(anchor, place) if larger else self.larger(place, anchor)):
                unsure |= 1 << place
        return TriState(true, unsure)

    def between(self, a: int, b: int) -> TriState:
        """Objects between two others."""
        (ax, ay), (bx, by) = self.places[a], self.places[b]
        dx, dy = bx - ax, by - ay
        length = dx * dx + dy * dy
        true = unsure = 0
        if length < (2 * MIN_GAP * min(self.extent)) ** 2:
            return TriState(0, self.everything)
        for place, (x, y) in enumerate(self.places):
            if place in (a, b):
                continue
            along = ((x - ax) * dx + (y - ay) * dy) / length
            off = abs((x - ax) * dy - (y - ay) * dx) / length
            if BETWEEN[0] <= along <= BETWEEN[1] and off <= BETWEEN[2]:
                true |= 1 << place
            elif NOT_BETWEEN[0] < along < NOT_BETWEEN[1] and off < NOT_BETWEEN[2]:
                unsure |= 1 << place
        return TriState(true, unsure)


def _clear(order: list[int], steps: list[bool]) -> list[int] | None:
    """`order` as far as its steps are clear: what comes before the first unclear one has its rank
    beyond doubt.
    """
    clear = steps.index(False) if False in steps else len(order)
    return order[:clear] or None
