"""Expressions that name nothing in the scene, though something like it is there."""

from __future__ import annotations

from collections.abc import Iterator

from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.finders.positions import ORDINALS
from wordmask.model.scenes.finders.terms import ANY_NOUN, Found, TriState, without
from wordmask.model.scenes.nouns import alike
from wordmask.model.scenes.relations import SIDES, SceneRelations


def find_absent_noun(relations: SceneRelations) -> Iterator[Found]:
    """Find nouns that nothing in the scene could be called."""
    for noun in _absent_nouns(relations):
        yield Found({"p": noun}, None)


def _absent_nouns(relations: SceneRelations) -> list[str]:
    absent = []
    for noun in relations.nouns:
        present = noun in relations.names
        if not present and not any(alike(noun, name) for name in relations.names):
            absent.append(noun)
    return absent


def find_absent_colour(relations: SceneRelations, *, noun: bool) -> Iterator[Found]:
    """Find colours that no object of a name has; without a noun, none at all."""
    names = relations.names if noun else {ANY_NOUN: relations.everything}
    for name, members in names.items():
        for colour in COLOUR_NAMES:
            state = relations.colours.get(colour, TriState())
            if state.none(members):
                yield Found({"p": f"{colour} {name}"}, None)


def find_absent_relation(relations: SceneRelations) -> Iterator[Found]:
    """Find groups and anchors that are there, but not in this relation."""
    for anchor in relations.anchors:
        for side in SIDES:
            state = relations.on_side(side, anchor.index)
            for group in relations.groups:
                others = without(group.members, anchor.index)
                if others and state.none(others):
                    slots = {"p": group.phrase, "r": f"side {side}", "a": anchor.phrase}
                    yield Found(slots, None)


def find_absent_anchor(relations: SceneRelations) -> Iterator[Found]:
    """Find groups beside an anchor that is not there."""
    phrases = [group.phrase for group in relations.groups if not group.colour]
    sides = tuple(SIDES)
    for number, noun in enumerate(_absent_nouns(relations)):
        phrase = phrases[number % len(phrases)]
        side = sides[number % len(sides)]
        slots = {"p": phrase, "r": f"side {side}", "a": f"the {noun}"}
        yield Found(slots, None)


def find_absent_ordinal(relations: SceneRelations) -> Iterator[Found]:
    """Find ranks that are one more than a group has objects."""
    for group in relations.groups:
        if group.count >= len(ORDINALS):
            continue
        ordinal = ORDINALS[group.count]
        for side in SIDES:
            slots = {"p": group.phrase, "o": ordinal, "s": side}
            yield Found(slots, None)
