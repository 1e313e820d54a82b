"""Expressions that name an object by its position in the image, or by its rank from a side."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from wordmask.model.scenes.finders.terms import Found
from wordmask.model.scenes.relations import SIDES, SceneRelations

ORDINALS = ("first", "second", "third", "fourth")


def find_extreme(relations: SceneRelations, how: str) -> Iterator[Found]:
    """Find the outermost object of a group on each side; `how` that is said."""
    for group in relations.groups_of(2):
        for side in SIDES:
            order = relations.by_position(group.members, side)
            if order:
                slots = {"p": group.phrase, "s": f"{how} {side}"}
                yield Found(slots, order[0])


def find_in_corner(relations: SceneRelations) -> Iterator[Found]:
    """Find objects that alone of their group lie in a corner."""
    corners = product(("top", "bottom"), ("left", "right"))
    for vertical, horizontal in corners:
        state = relations.in_corner(vertical, horizontal)
        for group in relations.groups:
            target = state.only(group.members)
            if target is not None:
                slots = {"p": group.phrase, "s": f"corner {vertical} {horizontal}"}
                yield Found(slots, target)


def find_middle(relations: SceneRelations) -> Iterator[Found]:
    """Find the middle one of three objects in a row or a column."""
    for group in relations.groups:
        if group.count != 3:
            continue
        for side in ("left", "top"):
            axis, _ = SIDES[side]
            order = relations.by_position(group.members, side) or []
            if len(order) == 3 and relations.in_line(order, axis):
                yield Found({"p": group.phrase}, order[1])


def find_ordinal(relations: SceneRelations) -> Iterator[Found]:
    """Find the objects of a group by their rank; of two, only the second."""
    for group in relations.groups_of(2):
        for side in SIDES:
            order = relations.by_position(group.members, side) or []
            for rank, target in enumerate(order[: len(ORDINALS)]):
                if group.count > 2 or rank == 1:
                    slots = {"p": group.phrase, "o": ORDINALS[rank], "s": side}
                    yield Found(slots, target)
