"""Terms of what is found in a scene: sets of objects, groups, anchors, and what a finder yields.

Sets of objects are bit masks: bit i stands for object i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

ANY_NOUN = "object"


class Found(NamedTuple):
    """The words that fill a pattern's slots, and the object that it names then (None: nothing)."""

    slots: dict[str, str]
    target: int | None

    @property
    def has_noun(self) -> bool:
        """Whether the phrase has a noun, and not any object."""
        return not self.slots["p"].endswith(ANY_NOUN)


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

    @property
    def has_colour(self) -> bool:
        return bool(self.colour)


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
    if members.bit_count() != 1:
        return None
    return members.bit_length() - 1


def indices(members: int) -> list[int]:
    """Return the objects of a set in order."""
    return [index for index in range(members.bit_length()) if members >> index & 1]


def without(members: int, *excluded: int) -> int:
    """Return a set without some objects."""
    for index in excluded:
        members &= ~(1 << index)
    return members
