"""What is true of the objects of a scene, each beyond doubt or not at all.

A relation is certain, certainly not so, or too close a call: `TriState` keeps the first and the
last apart, and an expression is made only where nothing is too close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

from wordmask.model.scenes.canvas import MIN_GAP, Scene, SceneObject
from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.finders.terms import (
    ANY_NOUN,
    Anchor,
    Group,
    TriState,
    indices,
    single,
    without,
)

SIZE_RATIO = 1.3  # of longer sides, and of areas: less than this apart, neither is the larger
# Of the way across: an object that is less to the left than this share of what it is above is not
# plainly left.
CONE = 0.5
NEAR_RATIO = 1.35  # of distances: less than this apart, neither is the closer
NEXT_TO = 0.45  # of the short side: centres further apart are not next to each other
# Along the line of two anchors from, to; furthest off it, unit of its length.
BETWEEN = (0.2, 0.8, 0.18)
NOT_BETWEEN = (-0.05, 1.05, 0.45)
# Of the side: centres up to this are in a corner, and from that on are not.
IN_CORNER, OUT_OF_CORNER = 0.38, 0.5
SPREAD = 1.5  # a row is at least this much longer than high
# Axis, and the sign by which positions along it increase from that side on.
SIDES = {
    "left": (0, 1),
    "right": (0, -1),
    "top": (1, 1),
    "bottom": (1, -1),
}
UNSURE = None
Verdict = Callable[[int], bool | None]  # of an object; None is UNSURE


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
            members = found.get(thing.name, 0)
            found[thing.name] = members | 1 << index
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
        nouns = self.names | {ANY_NOUN: self.everything}
        for noun, members in nouns.items():
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
        anchors = []
        plain = set()
        for group in self.groups:
            index = single(group.members)
            if index is None or not group.has_noun or group.noun in plain:
                continue
            if not group.colour:
                plain.add(group.noun)
            anchors.append(Anchor(f"the {group.phrase}", index))
        return tuple(anchors)

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
        return [(thing.extent, thing.area) for thing in self.objects]

    def larger(self, a: int, b: int) -> bool:
        """Whether `a` is plainly larger than `b`, by both measures."""
        extent, area = self.sizes[a]
        other_extent, other_area = self.sizes[b]
        longer = extent >= SIZE_RATIO * other_extent
        return longer and area >= SIZE_RATIO * other_area

    def smaller(self, a: int, b: int) -> bool:
        """Whether `a` is plainly smaller than `b`, by both measures."""
        return self.larger(b, a)

    def by_size(self, members: int, *, smallest_first: bool) -> list[int] | None:
        """Order objects by size, as far as each is plainly apart from all that follow.

        Returns: None where not even the first is.
        """
        before = self.smaller if smallest_first else self.larger
        size_of = self.sizes.__getitem__
        order = sorted(indices(members), key=size_of, reverse=not smallest_first)
        apart = []
        for rank, index in enumerate(order):
            later = order[rank + 1 :]
            apart.append(all(before(index, other) for other in later))
        return _as_far_as_apart(order, apart)

    def by_position(self, members: int, side: str) -> list[int] | None:
        """Order objects from a side on, as far as each is plainly apart from the next.

        Returns: None where not even the first is.
        """
        axis, sign = SIDES[side]
        span = self.image_size[axis]
        along = [sign * centre[axis] / span for centre in self.centres]
        order = sorted(indices(members), key=along.__getitem__)
        apart = [along[b] - along[a] >= MIN_GAP for a, b in pairwise(order)]
        return _as_far_as_apart(order, apart)

    def distance(self, a: int, b: int) -> float:
        """Return the distance of two centres in pixels."""
        ax, ay = self.centres[a]
        bx, by = self.centres[b]
        dx = ax - bx
        dy = ay - by
        squared = dx**2 + dy**2
        return float(squared**0.5)

    def by_distance(self, members: int, anchor: int, *, nearest_first: bool) -> int | None:
        """Return the object nearest to an anchor (or farthest from it), where one plainly is."""

        def distance(index: int) -> float:
            return self.distance(index, anchor)

        others = indices(without(members, anchor))
        order = sorted(others, key=distance, reverse=not nearest_first)
        if len(order) < 2:
            return None
        distances = [distance(index) for index in order[:2]]
        near = min(distances)
        far = max(distances)
        gap = MIN_GAP * min(self.image_size)
        if far < NEAR_RATIO * near or far - near < gap:
            return None
        return order[0]

    def on_side(self, side: str, anchor: int) -> TriState:
        """Return the objects that lie to the left of an anchor (right of, above, below)."""
        return self._on_side[side, anchor]

    @cached_property
    def _on_side(self) -> dict[tuple[str, int], TriState]:
        anchors = range(len(self.objects))
        keys = product(SIDES, anchors)
        return {(side, anchor): self._beside(side, anchor) for side, anchor in keys}

    def _beside(self, side: str, anchor: int) -> TriState:
        axis, sign = SIDES[side]
        other = 1 - axis
        origin = self.centres[anchor]
        least = MIN_GAP * self.image_size[axis]

        def verdict(index: int) -> bool | None:
            centre = self.centres[index]
            along = sign * (origin[axis] - centre[axis])
            across = abs(origin[other] - centre[other])
            if along >= least and along >= CONE * across:
                return True
            return UNSURE if along > -least else False

        return self._judge(verdict, anchor)

    def _judge(self, verdict: Verdict, *anchors: int) -> TriState:
        """Collect what a verdict says of all objects but the anchors."""
        true = 0
        unsure = 0
        others = without(self.everything, *anchors)
        for index in indices(others):
            member = 1 << index
            found = verdict(index)
            if found is UNSURE:
                unsure |= member
            elif found:
                true |= member
        return TriState(true, unsure)

    def sized_against(self, anchor: int, *, larger: bool) -> TriState:
        """Return the objects that are larger (or smaller) than an anchor."""

        def verdict(index: int) -> bool | None:
            if self.larger(index, anchor):
                return larger
            if self.smaller(index, anchor):
                return not larger
            return UNSURE

        return self._judge(verdict, anchor)

    def between(self, a: int, b: int) -> TriState:
        """Return the objects between two others."""
        ax, ay = self.centres[a]
        bx, by = self.centres[b]
        dx = bx - ax
        dy = by - ay
        squared = dx * dx + dy * dy
        short_side = min(self.image_size)
        least = 2 * MIN_GAP * short_side
        if squared < least**2:
            return TriState(unsure=self.everything)

        def verdict(index: int) -> bool | None:
            x, y = self.centres[index]
            rx = x - ax
            ry = y - ay
            dot = rx * dx + ry * dy
            cross = rx * dy - ry * dx
            return _between(dot / squared, abs(cross) / squared)

        return self._judge(verdict, a, b)

    def in_corner(self, *sides: str) -> TriState:
        """Return the objects in the corner of two sides."""

        def verdict(index: int) -> bool | None:
            off = max(self._share_from(side, index) for side in sides)
            if off <= IN_CORNER:
                return True
            return UNSURE if off < OUT_OF_CORNER else False

        return self._judge(verdict)

    def _share_from(self, side: str, index: int) -> float:
        """Return how far a centre is from a side of the image, in unit of the way across."""
        axis, sign = SIDES[side]
        centre = self.centres[index]
        share = centre[axis] / self.image_size[axis]
        return share if sign > 0 else 1 - share

    def in_line(self, order: list[int], axis: int) -> bool:
        """Whether objects lie in a row (axis 0) or in a column (axis 1)."""
        centres = [self.centres[index] for index in order]
        along = [centre[axis] for centre in centres]
        across = [centre[1 - axis] for centre in centres]
        length = max(along) - min(along)
        height = max(across) - min(across)
        return length >= SPREAD * height


def _between(along: float, off: float) -> bool | None:
    """Return whether a point along a line of length 1, and so far off it, is between its ends."""
    start, end, widest = BETWEEN
    if start <= along <= end and off <= widest:
        return True
    start, end, widest = NOT_BETWEEN
    if start < along < end and off < widest:
        return UNSURE
    return False


def _as_far_as_apart(order: list[int], apart: list[bool]) -> list[int] | None:
    """Cut an order at the first object that is not apart: those before it have a certain rank."""
    end = apart.index(False) if False in apart else len(order)
    return order[:end] or None
