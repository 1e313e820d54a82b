"""What is said about scenes: expressions that name exactly one object, and some that name none.

An expression is true by construction (`model/train/templates.py`), and never a close call: what it
picks out is apart from everything else by a margin of size, place or colour
(`model/train/groups.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from string import Formatter

import numpy as np

from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.relations import SceneRelations
from wordmask.model.scenes.templates import SYNONYMS, TEMPLATES, Found, Template

# How often each kind is asked for, where a scene has something of each to ask.
KIND_SHARES = {"attribute": 0.27, "size": 0.13, "position": 0.2, "ordinal": 0.08, "relation": 0.32}
ABSENT_SHARE = 0.12
ARTICLE_SHARE = 0.7  # of expressions that begin with "the"
NOUN_SHARE = 0.75  # of expressions that could name a noun, or any object
THING_SHARE = 0.4  # of objects without a noun that are called things


@dataclass(frozen=True, kw_only=True)
class Expression:
    """`text` names object number `target` and no other, or, where `target` is None, nothing in the
    scene.

    `kind` is one of `KIND_SHARES`, or "absent"; `template` says which of its patterns the text was
    made by.
    """

    text: str
    target: int | None
    kind: str
    template: str = ""


def sample_expressions(
    scene: Scene,
    seed: int,
    count: int,
    *,
    nouns: Sequence[str],
    templates: Iterable[str] = tuple(TEMPLATES),
    absent: float = ABSENT_SHARE,
) -> list[Expression]:
    """Up to `count` different expressions about a scene, kinds by their shares, templates of a kind
    alike, targets balanced.

    `nouns` are all that scenes are drawn from: what is said to be absent is one of them. `absent`:
    share of expressions that name nothing; at 0 there are none, else more where a scene gives
    nothing else to say. KeyError for a template that there is none of.
    """
    rng = np.random.default_rng((seed, 19))
    view = SceneRelations(scene, nouns)
    left = {
        name: TEMPLATES[name] for name in templates if absent or TEMPLATES[name].kind != "absent"
    }
    found: dict[str, list[Found]] = {}
    asked: dict[int | None, int] = dict.fromkeys([*range(len(scene.objects)), None], 0)
    said: dict[str, Expression] = {}
    of_nothing = rng.random() < absent
    while left and len(said) < count:
        name = _draw_template(rng, left, of_nothing)
        options = (
            found[name] if name in found else found.setdefault(name, list(left[name].find(view)))
        )
        if not options:
            del left[name]
            continue
        option = _choose(rng, options, asked)
        text = _say(rng, left[name], option)
        if text not in said:
            said[text] = Expression(
                text=text, target=option.target, kind=left[name].kind, template=name
            )
            asked[option.target] += 1
            of_nothing = rng.random() < absent
    return list(said.values())


def all_expressions(
    scene: Scene, *, nouns: Sequence[str], templates: Iterable[str] = tuple(TEMPLATES)
) -> list[Expression]:
    """Every expression of some templates in every wording, with its article; what training the
    tokenizer and the tests are about.
    """
    view = SceneRelations(scene, nouns)
    said: dict[str, Expression] = {}
    for name in templates:
        template = TEMPLATES[name]
        for option in template.find(view):
            for text in _wordings(template, option):
                said[text] = Expression(
                    text=text, target=option.target, kind=template.kind, template=name
                )
    return list(said.values())


def _draw_template(rng: np.random.Generator, left: dict[str, Template], absent: bool) -> str:
    """One of the templates that are left, of a kind drawn by its share; one about something absent,
    or not, while there is one.
    """
    wanted = [
        name for name, template in left.items() if (template.kind == "absent") == absent
    ] or list(left)
    kinds = sorted({left[name].kind for name in wanted})
    kind = kinds[_weighted(rng, [KIND_SHARES.get(kind, 1.0) for kind in kinds])]
    names = [name for name in wanted if left[name].kind == kind]
    return names[rng.integers(len(names))]


def _weighted(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """A place, drawn by weights of any sum."""
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums[:-1], rng.random() * sums[-1], side="right"))


def _choose(rng: np.random.Generator, options: list[Found], asked: dict[int | None, int]) -> Found:
    """Take one of the options: of an object asked for least, and rather by its noun than as an
    object.
    """
    fewest = min(asked[option.target] for option in options)
    places = [place for place, option in enumerate(options) if asked[option.target] == fewest]
    named = [place for place in places if not options[place].slots["p"].endswith("object")]
    if named and rng.random() < NOUN_SHARE:
        places = named
    return options.pop(places[rng.integers(len(places))])


def _say(rng: np.random.Generator, template: Template, option: Found) -> str:
    """One wording of many."""
    pattern = template.wordings[rng.integers(len(template.wordings))]
    words = {slot: _any(rng, SYNONYMS.get(word, (word,))) for slot, word in option.slots.items()}
    text = "the " + pattern.format(**words)
    if rng.random() < THING_SHARE:
        text = text.replace("object", "thing")
    return text if rng.random() < ARTICLE_SHARE else text.removeprefix("the ")


def _any(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[rng.integers(len(words))] if len(words) > 1 else words[0]


def _wordings(template: Template, option: Found) -> Iterable[str]:
    """Every wording, for objects and for things."""
    for pattern in template.wordings:
        slots = [slot for _, slot, _, _ in Formatter().parse(pattern) if slot]
        for words in product(
            *(SYNONYMS.get(option.slots[slot], (option.slots[slot],)) for slot in slots)
        ):
            text = "the " + pattern.format(**dict(zip(slots, words, strict=True)))
            yield from dict.fromkeys((text, text.replace("object", "thing")))
