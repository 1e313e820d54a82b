"""Expressions that name an object by its relation to an anchor, another object that has a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import combinations

from wordmask.model.scenes.finders.terms import Anchor, Found, TriState, without
from wordmask.model.scenes.relations import SIDES, SceneRelations

MOST = {
    "left": "leftmost",
    "right": "rightmost",
    "top": "topmost",
    "bottom": "bottommost",
}
Anchors = Callable[[SceneRelations], Iterable[Anchor]]


def plain_anchors(relations: SceneRelations) -> Iterable[Anchor]:
    """Return anchors that a noun names, if need be with a colour."""
    return relations.anchors


def anchors_by_position(relations: SceneRelations) -> Iterator[Anchor]:
    """Yield anchors that their position tells from others of their name."""
    for group in relations.groups_of(2):
        for side, word in MOST.items():
            order = relations.by_position(group.members, side)
            if order and group.has_noun:
                yield Anchor(f"the {word} {group.phrase}", order[0])


def anchors_by_size(relations: SceneRelations) -> Iterator[Anchor]:
    """Yield anchors that their size tells from others of their name."""
    for group in relations.groups_of(2):
        for word, smallest_first in (("smallest", True), ("biggest", False)):
            order = relations.by_size(group.members, smallest_first=smallest_first)
            if order and group.has_noun:
                yield Anchor(f"the {word} {group.phrase}", order[0])


def find_beside(
    relations: SceneRelations, side: str, anchors: Anchors = plain_anchors
) -> Iterator[Found]:
    """Find objects that alone of their group lie on a side of an anchor."""
    for anchor in anchors(relations):
        state = relations.on_side(side, anchor.index)
        yield from _related_to(relations, anchor, state, f"side {side}")


def find_beside_any(relations: SceneRelations, anchors: Anchors) -> Iterator[Found]:
    """Find objects that alone of their group lie on any side of an anchor."""
    for side in SIDES:
        yield from find_beside(relations, side, anchors)


def find_sized(relations: SceneRelations, word: str) -> Iterator[Found]:
    """Find objects that alone of their group are larger (or smaller) than an anchor."""
    for anchor in relations.anchors:
        state = relations.sized_against(anchor.index, larger=word == "larger")
        yield from _related_to(relations, anchor, state, word)


def find_same_colour(relations: SceneRelations) -> Iterator[Found]:
    """Find objects that alone of their group have an anchor's colour, where neither says it."""
    for anchor in relations.anchors:
        colour = relations.objects[anchor.index].colour
        if colour is None:
            continue
        for found in _related_to(relations, anchor, relations.colours[colour]):
            if colour not in found.slots["p"] + found.slots["a"]:
                yield found


def _related_to(
    relations: SceneRelations, anchor: Anchor, state: TriState, word: str = ""
) -> Iterator[Found]:
    """Find objects of which alone in a group something is true; `word` says the relation."""
    for group in relations.groups:
        others = without(group.members, anchor.index)
        target = state.only(others)
        if target is not None:
            slots = {"p": group.phrase, "r": word, "a": anchor.phrase}
            yield Found(slots, target)


def find_nearest(
    relations: SceneRelations,
    *,
    anchors: Anchors = plain_anchors,
    farthest: bool = False,
    within: float = math.inf,
) -> Iterator[Found]:
    """Find the object of a group that is nearest to an anchor, or farthest from it.

    Args:
        within: largest distance, in unit of the image's short side.
    """
    reach = within * min(relations.image_size)
    for anchor in anchors(relations):
        pick = partial(relations.by_distance, anchor=anchor.index, nearest_first=not farthest)
        for group in relations.groups:
            target = pick(group.members)
            if target is not None and relations.distance(target, anchor.index) <= reach:
                slots = {"p": group.phrase, "a": anchor.phrase}
                yield Found(slots, target)


def find_between(relations: SceneRelations) -> Iterator[Found]:
    """Find objects that alone of their group lie between two anchors."""
    for a, b in combinations(relations.anchors, 2):
        if a.index == b.index:
            continue
        state = relations.between(a.index, b.index)
        for group in relations.groups:
            others = without(group.members, a.index, b.index)
            target = state.only(others)
            if target is not None:
                slots = {"p": group.phrase, "a": a.phrase, "b": b.phrase}
                yield Found(slots, target)
