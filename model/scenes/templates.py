"""The patterns of expressions, and the words that they are said in.

A pattern's slots are filled with plain words by a finder, which finds in a scene everything that
the pattern can truly say of exactly one object, or of none; `SYNONYMS` are said instead of them.
Slots: p the phrase, z a size, s a side, o an ordinal, c a colour, r a relation, a and b anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from wordmask.model.scenes.finders.absent import (
    find_absent_anchor,
    find_absent_colour,
    find_absent_noun,
    find_absent_ordinal,
    find_absent_relation,
)
from wordmask.model.scenes.finders.attributes import (
    find_by_size,
    find_not_coloured,
    find_plain,
    find_second_in_size,
    find_superlative,
)
from wordmask.model.scenes.finders.positions import (
    find_extreme,
    find_in_corner,
    find_middle,
    find_ordinal,
)
from wordmask.model.scenes.finders.related import (
    anchors_by_position,
    anchors_by_size,
    find_beside,
    find_beside_any,
    find_between,
    find_nearest,
    find_same_colour,
    find_sized,
)
from wordmask.model.scenes.finders.terms import Found
from wordmask.model.scenes.relations import NEXT_TO, SceneRelations

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


def synonyms(word: str) -> tuple[str, ...]:
    """Return the ways to say a word, or the word alone."""
    return SYNONYMS.get(word, (word,))


Finder = Callable[[SceneRelations], Iterator[Found]]


class Template(NamedTuple):
    """A pattern: its kind, its wordings (after "the"), and its finder."""

    kind: str
    wordings: tuple[str, ...]
    find: Finder

    @property
    def is_absent(self) -> bool:
        """Whether its expressions name nothing."""
        return self.kind == "absent"


_PHRASE = ("{p}",)
_SIZED = ("{z} {p}",)
_RANKED = ("{o} {p} from the {s}",)
_RELATED = ("{p} {r} {a}",)
_CLOSEST = ("{p} closest to {a}", "{p} nearest to {a}")
TEMPLATES: dict[str, Template] = {
    "noun": Template("attribute", _PHRASE, partial(find_plain, noun=True, colour=False)),
    "colour-noun": Template("attribute", _PHRASE, partial(find_plain, noun=True, colour=True)),
    "colour-object": Template("attribute", _PHRASE, partial(find_plain, noun=False, colour=True)),
    "not-colour": Template(
        "attribute", ("{p} that is not {c}", "{p} that isn't {c}"), find_not_coloured
    ),
    "size-noun": Template("size", _SIZED, partial(find_by_size, colour=False)),
    "size-colour-noun": Template("size", _SIZED, partial(find_by_size, colour=True)),
    "superlative": Template("size", _SIZED, find_superlative),
    "second-in-size": Template("size", ("second {z} {p}",), find_second_in_size),
    "extreme": Template("position", ("{s} {p}",), partial(find_extreme, how="most")),
    "at-side": Template("position", ("{p} {s}",), partial(find_extreme, how="at")),
    "side-noun": Template("position", ("{s} {p}",), partial(find_extreme, how="adjective")),
    "corner": Template("position", ("{p} in the {s} corner", "{s} {p}"), find_in_corner),
    "middle": Template("position", ("middle {p}", "{p} in the middle"), find_middle),
    "ordinal": Template("ordinal", _RANKED, find_ordinal),
    "left-of": Template("relation", _RELATED, partial(find_beside, side="left")),
    "right-of": Template("relation", _RELATED, partial(find_beside, side="right")),
    "above": Template("relation", _RELATED, partial(find_beside, side="top")),
    "below": Template("relation", _RELATED, partial(find_beside, side="bottom")),
    "closest": Template("relation", _CLOSEST, find_nearest),
    "next-to": Template(
        "relation",
        ("{p} next to {a}", "{p} beside {a}", "{p} by {a}"),
        partial(find_nearest, within=NEXT_TO),
    ),
    "farthest": Template(
        "relation", ("{p} farthest from {a}",), partial(find_nearest, farthest=True)
    ),
    "between": Template("relation", ("{p} between {a} and {b}",), find_between),
    "larger-than": Template("relation", ("{p} {r} than {a}",), partial(find_sized, word="larger")),
    "smaller-than": Template(
        "relation", ("{p} {r} than {a}",), partial(find_sized, word="smaller")
    ),
    "same-colour": Template(
        "relation",
        ("{p} with the same color as {a}", "{p} of the same color as {a}"),
        find_same_colour,
    ),
    "closest-to-placed": Template(
        "relation", _CLOSEST, partial(find_nearest, anchors=anchors_by_position)
    ),
    "closest-to-sized": Template(
        "relation", _CLOSEST, partial(find_nearest, anchors=anchors_by_size)
    ),
    "beside-placed": Template(
        "relation", _RELATED, partial(find_beside_any, anchors=anchors_by_position)
    ),
    "beside-sized": Template(
        "relation", _RELATED, partial(find_beside_any, anchors=anchors_by_size)
    ),
    "absent-noun": Template("absent", _PHRASE, find_absent_noun),
    "absent-colour-noun": Template("absent", _PHRASE, partial(find_absent_colour, noun=True)),
    "absent-colour-object": Template("absent", _PHRASE, partial(find_absent_colour, noun=False)),
    "absent-relation": Template("absent", _RELATED, find_absent_relation),
    "absent-anchor": Template("absent", _RELATED, find_absent_anchor),
    "absent-ordinal": Template("absent", _RANKED, find_absent_ordinal),
}
# Relations that only the split test-relation has. Training has every word of them, but relates
# nothing to an anchor that is told by position or by size, except as what something is closest to.
HELD_OUT_TEMPLATES = ("beside-placed", "beside-sized", "closest-to-sized")
