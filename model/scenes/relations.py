"""What is true of the objects of a scene, each beyond doubt or not at all.

Sets of objects are bit masks: bit i stands for object i. A relation is certain, certainly not so,
or too close a call; `TriState` keeps the first and the last apart, and an expression is made only
where nothing is too close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from wordmask.model.scenes.canvas import MIN_GAP, Scene, SceneObject
from wordmask.model.scenes.colours import COLOUR_NAMES

SIZE_RATIO = 1.3  # of longer sides, and of areas: less than this apart, neither is the larger
# Of the way across: an object that is less to the left than this share of what it is above is not
# plainly left.
CONE = 0.5
NEAR_RATIO = 1.35  # of distances: less than this apart, neither is the closer
NEXT_TO = 0.45  # of the short side: centres further apart are not next to each other
# Along the line of two anchors from, to; furthest off it, unit of its length.
BETWEEN = (0.2, 0.8, 0.18)
NOT_BETWEEN = (-0.05, 1.05, 0.45)
CORNER = (0.38, 0.5)  # of the side: centres up to this are in a corner, beyond that are not
SPREAD = 1.5  # a row is at least this much longer than high
# Axis, and the sign by which positions along it increase from that side on.
SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
ANY_NOUN = "object"


@dataclass(frozen=True)
class Group:
    """A phrase without article, and the set of objects that it fits, and surely no other.

    `colour` is "" where the phrase names none.
    """

    phrase: str
    members: int
    noun: str
    colour: str

    @property
    def count(self) -> int:
        return self.members.bit_count()

    @property
    def has_noun(self) -> bool:
        return self.noun != ANY_NOUN


@dataclass(frozen=True)
class Anchor:
    """A phrase with article, and the one object that it names."""

    phrase: str
    index: int


class TriState(NamedTuple):
    """The objects of which something is true, and those of which it might be."""

    true: int = 0
    unsure: int = 0

    def only(self, among: int) -> int | None:
        """Return the one object of a set of which it is true while false of all others."""
        if self.unsure & among:
            return None
        return single(self.true & among)

    def none(self, among: int) -> bool:
        """Whether it is false of all objects of a set."""
        return not (self.true | self.unsure) & among


def single(members: int) -> int | None:
    """Return the object of a set of one; None for other sets."""
    return members.bit_length() - 1 if members.bit_count() == 1 else None


def indices(members: int) -> list[int]:
    """Return the objects of a set in order."""
    return [index for index in range(members.bit_length()) if members >> index & 1]


def without(members: int, *excluded: int) -> int:
    """Return a set without some objects."""
    for index in excluded:
        members &= ~(1 << index)
    return members


@dataclass(frozen=True)
class SceneRelations:
    """A scene as expressions are made about it.

    `nouns` are all names that a scene might have had objects of.
    """

    scene: Scene
    nouns: Sequence[str]

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        return self.scene.objects

    @cached_property
    def everything(self) -> int:
        """The set of all objects."""
        return (1 << len(self.objects)) - 1

    @cached_property
    def names(self) -> dict[str, int]:
        """The objects of each name."""
        found: dict[str, int] = {}
        for index, thing in enumerate(self.objects):
            found[thing.name] = found.get(thing.name, 0) | 1 << index
        return found

    @cached_property
    def colours(self) -> dict[str, TriState]:
        """The objects of each colour that some object has or might have.

        Their order is that of the objects, then that of COLOUR_NAMES: that of a set of words
        differs from process to process.
        """
        found: dict[str, TriState] = {}
        for index, thing in enumerate(self.objects):
            for name in COLOUR_NAMES:
                true, unsure = found.get(name, TriState())
                if name == thing.colour:
                    found[name] = TriState(true | 1 << index, unsure)
                elif name in thing.possible_colours:
                    found[name] = TriState(true, unsure | 1 << index)
        return found

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every phrase of noun and colour that surely fits some objects and surely no other."""
        return tuple(self._groups())

    def _groups(self) -> Iterator[Group]:
        for noun, members in (*self.names.items(), (ANY_NOUN, self.everything)):
            yield Group(noun, members, noun, "")
            for colour, state in self.colours.items():
                coloured = state.true & members
                if coloured and not state.unsure & members:
                    yield Group(f"{colour} {noun}", coloured, noun, colour)

    def groups_of(self, least: int) -> Iterator[Group]:
        """Yield the groups of at least so many objects."""
        return (group for group in self.groups if group.count >= least)

    @cached_property
    def anchors(self) -> tuple[Anchor, ...]:
        """Phrases of one object each that others can be related to.

        A colour is said only where the noun is not enough.
        """
        named = [group for group in self.groups if group.count == 1 and group.has_noun]
        plain = {group.noun for group in named if not group.colour}
        chosen = [group for group in named if not group.colour or group.noun not in plain]
        return tuple(
            Anchor(f"the {group.phrase}", group.members.bit_length() - 1) for group in chosen
        )

    @cached_property
    def centres(self) -> list[tuple[float, float]]:
        """Centre of what is visible of each object, (x, y) in pixels."""
        return [thing.centre for thing in self.objects]

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        height, width = self.scene.image_HW3.shape[:2]
        return width, height

    @cached_property
    def sizes(self) -> list[tuple[float, float]]:
        """Longer side and area of what is visible of each object, in pixels."""
        return [(thing.extent, float(thing.mask_HW.sum())) for thing in self.objects]

    def larger(self, a: int, b: int) -> bool:
        """Whether `a` is plainly larger than `b`, by both measures."""
        pairs = zip(self.sizes[a], self.sizes[b], strict=True)
        return all(x >= SIZE_RATIO * y for x, y in pairs)

    def smaller(self, a: int, b: int) -> bool:
        """Whether `a` is plainly smaller than `b`, by both measures."""
        return self.larger(b, a)

    def by_size(self, members: int, *, smallest_first: bool) -> list[int] | None:
        """Order objects by size, as far as each is plainly apart from all that follow.

        Returns: None where not even the first is.
        """
        before = self.smaller if smallest_first else self.larger
        order = sorted(indices(members), key=self.sizes.__getitem__, reverse=not smallest_first)
        apart = [
            all(before(index, later) for later in order[rank + 1 :])
            for rank, index in enumerate(order)
        ]
        return _as_far_as_apart(order, apart)

    def by_position(self, members: int, side: str) -> list[int] | None:
        """Order objects from a side on, as far as each is plainly apart from the next.

        Returns: None where not even the first is.
        """
        axis, sign = SIDES[side]
        along = [sign * centre[axis] / self.image_size[axis] for centre in self.centres]
        order = sorted(indices(members), key=along.__getitem__)
        apart = [along[b] - along[a] >= MIN_GAP for a, b in pairwise(order)]
        return _as_far_as_apart(order, apart)

    def distance(self, a: int, b: int) -> float:
        """Return the distance of two centres in pixels."""
        (ax, ay), (bx, by) = self.centres[a], self.centres[b]
        return float(((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5)

    def by_distance(self, members: int, anchor: int, *, nearest_first: bool) -> int | None:
        """Return the object nearest to an anchor (or farthest from it), where one plainly is."""

        def distance(index: int) -> float:
            return self.distance(index, anchor)

        others = indices(without(members, anchor))
        order = sorted(others, key=distance, reverse=not nearest_first)
        if len(order) < 2:
            return None
        near, far = sorted(map(distance, order[:2]))
        apart = far >= NEAR_RATIO * near and far - near >= MIN_GAP * min(self.image_size)
        return order[0] if apart else None

    def on_side(self, side: str, anchor: int) -> TriState:
        """Return the objects that lie to the left of an anchor (right of, above, below)."""
        return self._on_side[side, anchor]

    @cached_property
    def _on_side(self) -> dict[tuple[str, int], TriState]:
        anchors = range(len(self.objects))
        return {(side, anchor): self._beside(side, anchor) for side in SIDES for anchor in anchors}

    def _beside(self, side: str, anchor: int) -> TriState:
        axis, sign = SIDES[side]
        origin = self.centres[anchor]
        least = MIN_GAP * self.image_size[axis]

        def verdict(index: int) -> bool | None:
            centre = self.centres[index]
            along = sign * (origin[axis] - centre[axis])
            across = abs(origin[1 - axis] - centre[1 - axis])
            if along >= least and along >= CONE * across:
                return True
            return None if along > -least else False

        return self._judge(verdict, anchor)

    def _judge(self, verdict: Callable[[int], bool | None], *anchors: int) -> TriState:
        """Collect what a verdict says of all objects but the anchors; None is unsure."""
        true = unsure = 0
        for index in indices(without(self.everything, *anchors)):
            found = verdict(index)
            if found:
                true |= 1 << index
            elif found is None:
                unsure |= 1 << index
        return TriState(true, unsure)

    def sized_against(self, anchor: int, *, larger: bool) -> TriState:
        """Return the objects that are larger (or smaller) than an anchor."""

        def verdict(index: int) -> bool | None:
            if self.larger(index, anchor):
                return larger
            return not larger if self.smaller(index, anchor) else None

        return self._judge(verdict, anchor)

    def between(self, a: int, b: int) -> TriState:
        """Return the objects between two others."""
        (ax, ay), (bx, by) = self.centres[a], self.centres[b]
        dx, dy = bx - ax, by - ay
        length = dx * dx + dy * dy
        if length < (2 * MIN_GAP * min(self.image_size)) ** 2:
            return TriState(0, self.everything)

        def verdict(index: int) -> bool | None:
            x, y = self.centres[index]
            along = ((x - ax) * dx + (y - ay) * dy) / length
            off = abs((x - ax) * dy - (y - ay) * dx) / length
            if BETWEEN[0] <= along <= BETWEEN[1] and off <= BETWEEN[2]:
                return True
            near = NOT_BETWEEN[0] < along < NOT_BETWEEN[1] and off < NOT_BETWEEN[2]
            return None if near else False

        return self._judge(verdict, a, b)

    def in_corner(self, *sides: str) -> TriState:
        """Return the objects in the corner of two sides."""

        def verdict(index: int) -> bool | None:
            off = max(self._share_from(side, index) for side in sides)
            if off <= CORNER[0]:
                return True
            return None if off < CORNER[1] else False

        return self._judge(verdict)

    def _share_from(self, side: str, index: int) -> float:
        """Return how far a centre is from a side of the image, in unit of the way across."""
        axis, sign = SIDES[side]
        share = self.centres[index][axis] / self.image_size[axis]
        return share if sign > 0 else 1 - share

    def in_line(self, order: list[int], axis: int) -> bool:
        """Whether objects lie in a row (axis 0) or in a column (axis 1)."""
        along = [self.centres[index][axis] for index in order]
        across = [self.centres[index][1 - axis] for index in order]
        return max(along) - min(along) >= SPREAD * (max(across) - min(across))


def _as_far_as_apart(order: list[int], apart: list[bool]) -> list[int] | None:
    """Cut an order at the first object that is not apart: those before it have a certain rank."""
    end = apart.index(False) if False in apart else len(order)
    return order[:end] or None
