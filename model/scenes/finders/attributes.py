"""Expressions that name an object by what it is: noun, colour, size."""

from __future__ import annotations

from collections.abc import Iterator

from wordmask.model.scenes.finders.terms import Found, Group, single
from wordmask.model.scenes.nouns import PLURALS
from wordmask.model.scenes.relations import SceneRelations


def find_plain(relations: SceneRelations, *, noun: bool, colour: bool) -> Iterator[Found]:
    """Find objects that a noun, a colour, or both name."""
    for group in relations.groups:
        if group.has_noun != noun or group.has_colour != colour:
            continue
        target = single(group.members)
        if target is not None:
            yield Found({"p": group.phrase}, target)


def find_not_coloured(relations: SceneRelations) -> Iterator[Found]:
    """Find objects that surely are not of a colour, while all others of their name are."""
    for noun, members in relations.names.items():
        if noun in PLURALS or members.bit_count() < 2:
            continue
        for colour, state in relations.colours.items():
            if state.unsure & members:
                continue
            target = single(members & ~state.true)
            if target is not None:
                yield Found({"p": noun, "c": colour}, target)


def find_by_size(relations: SceneRelations, *, colour: bool) -> Iterator[Found]:
    """Find the small and the large object of a noun, with or without a colour."""
    for group in relations.groups_of(2):
        if group.has_noun and group.has_colour == colour:
            yield from _at_both_ends(relations, group, "small", "large")


def find_superlative(relations: SceneRelations) -> Iterator[Found]:
    """Find the smallest and the largest object of a group."""
    for group in relations.groups_of(2):
        yield from _at_both_ends(relations, group, "smallest", "largest")


def find_second_in_size(relations: SceneRelations) -> Iterator[Found]:
    """Find the second smallest and the second largest object of a group of three or more."""
    for group in relations.groups_of(3):
        yield from _at_both_ends(relations, group, "smallest", "largest", rank=1)


def _at_both_ends(
    relations: SceneRelations, group: Group, small: str, large: str, rank: int = 0
) -> Iterator[Found]:
    for word, smallest_first in ((small, True), (large, False)):
        order = relations.by_size(group.members, smallest_first=smallest_first)
        if order and rank < len(order):
            slots = {"p": group.phrase, "z": word}
            yield Found(slots, order[rank])
