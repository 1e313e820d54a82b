"""The patterns of expressions: each finds, in a scene, everything it can truly say of exactly one
object, or of none.

A pattern's slots hold plain words; `SYNONYMS` are said in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import NamedTuple

from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.nouns import PLURALS, alike
from wordmask.model.scenes.relations import NEXT_TO, SIDES, Group, SceneRelations, TriState

ORDINALS = ("first", "second", "third", "fourth")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("big", "large"),
    "smallest": ("smallest", "tiniest"),
    "largest": ("biggest", "largest"),
    "smaller": ("smaller",),
    "larger": ("bigger", "larger"),
    "gray": ("gray", "grey"),
    "side left": ("left of", "to the left of", "on the left side of"),
    "side right": ("right of", "to the right of", "on the right side of"),
    "side top": ("above", "over", "higher up than"),
    "side bottom": ("below", "under", "beneath"),
    "at left": ("on the left", "on the left side", "at the left"),
    "at right": ("on the right", "on the right side", "at the right"),
    "at top": ("at the top", "on top"),
    "at bottom": ("at the bottom",),
    "most left": ("leftmost", "far left"),
    "most right": ("rightmost", "far right"),
    "most top": ("topmost", "uppermost", "highest"),
    "most bottom": ("bottommost", "lowest"),
    "adjective left": ("left",),
    "adjective right": ("right",),
    "adjective top": ("top", "upper"),
    "adjective bottom": ("bottom", "lower"),
    "corner top left": ("top left", "upper left"),
    "corner top right": ("top right", "upper right"),
    "corner bottom left": ("bottom left", "lower left"),
    "corner bottom right": ("bottom right", "lower right"),
}
CORNER = (0.38, 0.5)  # of the side: centres up to this are in a corner, beyond that are not
SPREAD = 1.5  # a row is at least this much longer than high


class Found(NamedTuple):
    """What fills a pattern's slots, and the object that it names then (None: nothing)."""

    slots: dict[str, str]
    target: int | None


class Template(NamedTuple):
    """A pattern: its kind, its wordings (after "the"), and how it is found in a scene."""

    kind: str
    wordings: tuple[str, ...]
    find: Callable[[SceneRelations], Iterator[Found]]


def _plain(view: SceneRelations, *, noun: bool, colour: bool) -> Iterator[Found]:
    for group in view.groups:
        if group.count == 1 and (group.noun != "object") == noun and bool(group.colour) == colour:
            yield Found({"p": group.phrase}, group.members.bit_length() - 1)


def _not_colour(view: SceneRelations) -> Iterator[Found]:
    """All others of that name are of the colour, and the one surely is not."""
    for noun, members in view.names.items():
        for colour, doubt in view.colours.items():
            rest = members & ~doubt.true
            if (
                members.bit_count() >= 2
                and rest.bit_count() == 1
                and not doubt.unsure & members
                and noun not in PLURALS
            ):
                yield Found({"p": noun, "c": colour}, rest.bit_length() - 1)


def _several(view: SceneRelations, least: int = 2) -> Iterator[Group]:
    return (group for group in view.groups if group.count >= least)


def _size(view: SceneRelations, *, colour: bool) -> Iterator[Found]:
    for group in _several(view):
        if group.noun != "object" and bool(group.colour) == colour:
            yield from _in_size(view, group, "small", "large", 0)


def _superlative(view: SceneRelations) -> Iterator[Found]:
    for group in _several(view):
        yield from _in_size(view, group, "smallest", "largest", 0)


def _second_size(view: SceneRelations) -> Iterator[Found]:
    for group in _several(view, 3):
        yield from _in_size(view, group, "smallest", "largest", 1)


def _in_size(
    view: SceneRelations, group: Group, small: str, large: str, rank: int
) -> Iterator[Found]:
    for word, smallest_first in ((small, True), (large, False)):
        order = view.by_size(group.members, smallest_first=smallest_first)
        if order and rank < len(order):
            yield Found({"p": group.phrase, "z": word}, order[rank])


def _extreme(view: SceneRelations, how: str) -> Iterator[Found]:
    for group in _several(view):
        for side in SIDES:
            order = view.by_place(group.members, side)
            if order:
                yield Found({"p": group.phrase, "s": f"{how} {side}"}, order[0])


def _corner(view: SceneRelations) -> Iterator[Found]:
    for vertical in ("top", "bottom"):
        for horizontal in ("left", "right"):
            doubt = _in_corner(view, vertical, horizontal)
            for group in view.groups:
                target = doubt.only(group.members)
                if target is not None:
                    yield Found({"p": group.phrase, "s": f"corner {vertical} {horizontal}"}, target)


def _in_corner(view: SceneRelations, *sides: str) -> TriState:
    true = unsure = 0
    for place, centre in enumerate(view.places):
        shares = [centre[axis] / view.extent[axis] for axis in (SIDES[side][0] for side in sides)]
        off = max(
            share if SIDES[side][1] > 0 else 1 - share
            for share, side in zip(shares, sides, strict=True)
        )
        if off <= CORNER[0]:
            true |= 1 << place
        elif off < CORNER[1]:
            unsure |= 1 << place
    return TriState(true, unsure)


def _middle(view: SceneRelations) -> Iterator[Found]:
    """Of three in a row or a column."""
    for group in view.groups:
        if group.count == 3:
            for side in ("left", "top"):
                order = view.by_place(group.members, side)
                if order and len(order) == 3 and _in_line(view, order, SIDES[side][0]):
                    yield Found({"p": group.phrase}, order[1])


def _in_line(view: SceneRelations, order: list[int], axis: int) -> bool:
    along, across = ([view.places[place][a] for place in order] for a in (axis, 1 - axis))
    return max(along) - min(along) >= SPREAD * (max(across) - min(across))


def _ordinal(view: SceneRelations) -> Iterator[Found]:
    for group in _several(view):
        for side in SIDES:
            order = view.by_place(group.members, side) or []
            for rank, target in enumerate(order[: len(ORDINALS)]):
                if group.count > 2 or rank == 1:
                    yield Found({"p": group.phrase, "o": ORDINALS[rank], "s": side}, target)


def _related(
    view: SceneRelations,
    relation: Callable[[SceneRelations, int], TriState],
    anchors: list[tuple[str, int]] | None = None,
    word: str = "",
) -> Iterator[Found]:
    """Objects that alone in a group stand in a relation to another. `word` says the relation, where
    the pattern does not.
    """
    for phrase, anchor in view.anchors if anchors is None else anchors:
        doubt = relation(view, anchor)
        for group in view.groups:
            target = doubt.only(group.members & ~(1 << anchor))
            if target is not None:
                yield Found({"p": group.phrase, "r": word, "a": phrase}, target)


def _beside(view: SceneRelations, side: str) -> Iterator[Found]:
    return _related(view, lambda v, anchor: v.on_side(side, anchor), word=f"side {side}")


def _sized(view: SceneRelations, word: str) -> Iterator[Found]:
    return _related(
        view, lambda v, anchor: v.sized_against(anchor, larger=word == "larger"), word=word
    )


def _nearest(
    view: SceneRelations,
    anchors: list[tuple[str, int]] | None = None,
    *,
    nearest: bool = True,
    within: float | None = None,
) -> Iterator[Found]:
    for phrase, anchor in view.anchors if anchors is None else anchors:
        for group in view.groups:
            target = view.by_distance(group.members, anchor, nearest_first=nearest)
            if target is not None and (
                within is None or view.distance(target, anchor) <= within * min(view.extent)
            ):
                yield Found({"p": group.phrase, "a": phrase}, target)


def _between(view: SceneRelations) -> Iterator[Found]:
    for (first, a), (second, b) in combinations(view.anchors, 2):
        doubt = view.between(a, b)
        for group in view.groups if a != b and doubt.true else ():
            target = doubt.only(group.members & ~(1 << a | 1 << b))
            if target is not None:
                yield Found({"p": group.phrase, "a": first, "b": second}, target)


def _same_colour(view: SceneRelations) -> Iterator[Found]:
    def alike_in_colour(view: SceneRelations, anchor: int) -> TriState:
        colour = view.objects[anchor].colour
        return view.colours[colour] if colour else TriState(0, view.everything)

    for found in _related(view, alike_in_colour):
        if view.objects[found.target or 0].colour not in found.slots["p"] + found.slots["a"]:
            yield found


def _placed(view: SceneRelations) -> list[tuple[str, int]]:
    """Anchors that are told from others of their name by their place."""
    named = [
        (group, side, view.by_place(group.members, side))
        for group in _several(view)
        for side in SIDES
        if group.noun != "object"
    ]
    words = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
    return [
        (f"the {words[side]} {group.phrase}", order[0]) for group, side, order in named if order
    ]


def _by_size(view: SceneRelations) -> list[tuple[str, int]]:
    """Anchors that are told from others of their name by their size."""
    named = [
        (group, first, view.by_size(group.members, smallest_first=first))
        for group in _several(view)
        for first in (True, False)
    ]
    words = {True: "smallest", False: "biggest"}
    return [
        (f"the {words[first]} {group.phrase}", order[0])
        for group, first, order in named
        if order and group.noun != "object"
    ]


def _beside_any(
    view: SceneRelations, anchors: Callable[[SceneRelations], list[tuple[str, int]]]
) -> Iterator[Found]:
    for side in SIDES:
        yield from _related(
            view,
            lambda v, anchor, side=side: v.on_side(side, anchor),
            anchors(view),
            f"side {side}",
        )


def _absent_nouns(view: SceneRelations) -> list[str]:
    return [
        noun
        for noun in view.nouns
        if noun not in view.names and not any(alike(noun, name) for name in view.names)
    ]


def _absent_noun(view: SceneRelations) -> Iterator[Found]:
    return (Found({"p": noun}, None) for noun in _absent_nouns(view))


def _absent_colour(view: SceneRelations, *, noun: bool) -> Iterator[Found]:
    """Of that name, but none of that colour."""
    for name, members in view.names.items() if noun else (("object", view.everything),):
        for colour in COLOUR_NAMES:
            if view.colours.get(colour, TriState()).none(members):
                yield Found({"p": f"{colour} {name}"}, None)


def _absent_relation(view: SceneRelations) -> Iterator[Found]:
    """Both are there, but not so."""
    for phrase, anchor in view.anchors:
        for side in SIDES:
            doubt = view.on_side(side, anchor)
            for group in view.groups:
                others = group.members & ~(1 << anchor)
                if others and doubt.none(others):
                    yield Found({"p": group.phrase, "r": f"side {side}", "a": phrase}, None)


def _absent_anchor(view: SceneRelations) -> Iterator[Found]:
    """Something beside what is not there."""
    groups = [group for group in view.groups if not group.colour]
    sides = tuple(SIDES)
    for place, noun in enumerate(_absent_nouns(view) if groups else ()):
        yield Found(
            {
                "p": groups[place % len(groups)].phrase,
                "r": f"side {sides[place % len(sides)]}",
                "a": f"the {noun}",
            },
            None,
        )


def _absent_ordinal(view: SceneRelations) -> Iterator[Found]:
    """One more than there are."""
    for group in view.groups:
        if group.count < len(ORDINALS):
            for side in SIDES:
                yield Found({"p": group.phrase, "o": ORDINALS[group.count], "s": side}, None)


_AT = ("{p} {r} {a}",)
TEMPLATES: dict[str, Template] = {
    "noun": Template("attribute", ("{p}",), partial(_plain, noun=True, colour=False)),
    "colour-noun": Template("attribute", ("{p}",), partial(_plain, noun=True, colour=True)),
    "colour-object": Template("attribute", ("{p}",), partial(_plain, noun=False, colour=True)),
    "not-colour": Template("attribute", ("{p} that is not {c}", "{p} that isn't {c}"), _not_colour),
    "size-noun": Template("size", ("{z} {p}",), partial(_size, colour=False)),
    "size-colour-noun": Template("size", ("{z} {p}",), partial(_size, colour=True)),
    "superlative": Template("size", ("{z} {p}",), _superlative),
    "second-in-size": Template("size", ("second {z} {p}",), _second_size),
    "extreme": Template("position", ("{s} {p}",), partial(_extreme, how="most")),
    "at-side": Template("position", ("{p} {s}",), partial(_extreme, how="at")),
    "side-noun": Template("position", ("{s} {p}",), partial(_extreme, how="adjective")),
    "corner": Template("position", ("{p} in the {s} corner", "{s} {p}"), _corner),
    "middle": Template("position", ("middle {p}", "{p} in the middle"), _middle),
    "ordinal": Template("ordinal", ("{o} {p} from the {s}",), _ordinal),
    "left-of": Template("relation", _AT, partial(_beside, side="left")),
    "right-of": Template("relation", _AT, partial(_beside, side="right")),
    "above": Template("relation", _AT, partial(_beside, side="top")),
    "below": Template("relation", _AT, partial(_beside, side="bottom")),
    "closest": Template("relation", ("{p} closest to {a}", "{p} nearest to {a}"), _nearest),
    "next-to": Template(
        "relation",
        ("{p} next to {a}", "{p} beside {a}", "{p} by {a}"),
        partial(_nearest, within=NEXT_TO),
    ),
    "farthest": Template("relation", ("{p} farthest from {a}",), partial(_nearest, nearest=False)),
    "between": Template("relation", ("{p} between {a} and {b}",), _between),
    "larger-than": Template("relation", ("{p} {r} than {a}",), partial(_sized, word="larger")),
    "smaller-than": Template("relation", ("{p} {r} than {a}",), partial(_sized, word="smaller")),
    "same-colour": Template(
        "relation", ("{p} with the same color as {a}", "{p} of the same color as {a}"), _same_colour
    ),
    "closest-to-placed": Template(
        "relation",
        ("{p} closest to {a}", "{p} nearest to {a}"),
        lambda view: _nearest(view, _placed(view)),
    ),
    "closest-to-sized": Template(
        "relation",
        ("{p} closest to {a}", "{p} nearest to {a}"),
        lambda view: _nearest(view, _by_size(view)),
    ),
    "beside-placed": Template("relation", _AT, partial(_beside_any, anchors=_placed)),
    "beside-sized": Template("relation", _AT, partial(_beside_any, anchors=_by_size)),
    "absent-noun": Template("absent", ("{p}",), _absent_noun),
    "absent-colour-noun": Template("absent", ("{p}",), partial(_absent_colour, noun=True)),
    "absent-colour-object": Template("absent", ("{p}",), partial(_absent_colour, noun=False)),
    "absent-relation": Template("absent", _AT, _absent_relation),
    "absent-anchor": Template("absent", _AT, _absent_anchor),
    "absent-ordinal": Template("absent", ("{o} {p} from the {s}",), _absent_ordinal),
}
# Relations that no split but test-relation has: every word of them is in train, but never a
# relation to a thing that is itself told from its like by place or by size, except as what
# something is closest to.
HELD_OUT_TEMPLATES = ("beside-placed", "beside-sized", "closest-to-sized")
