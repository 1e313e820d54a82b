"""What is said about scenes: expressions that name exactly one object, and some that name none.

An expression is true by construction (`model/train/templates.py`), and never a close call: what it picks out is apart from
everything else by a margin of size, place or colour (`model/train/groups.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from string import Formatter

import numpy as np

from model.train.canvas import Scene
from model.train.groups import View
from model.train.templates import SYNONYMS, TEMPLATES, Found, Template

# How often each kind is asked for, where a scene has something of each to ask.
KIND_SHARES = {"attribute": 0.24, "size": 0.12, "position": 0.18, "ordinal": 0.08, "relation": 0.26, "absent": 0.12}
ARTICLE_SHARE = 0.7  # of expressions that begin with "the"
THING_SHARE = 0.4  # of objects without a noun that are called things


@dataclass(frozen=True, kw_only=True)
class Expression:
    """`text` names object number `target` and no other, or, where `target` is None, nothing in the scene.

    `kind` is one of `KIND_SHARES`; `template` says which of its patterns the text was made by.
    """

    text: str
    target: int | None
    kind: str
    template: str = ""


def refer(
    scene: Scene, seed: int, count: int, *, nouns: Sequence[str], templates: Iterable[str] = tuple(TEMPLATES), absent: float | None = None
) -> list[Expression]:
    """Up to `count` different expressions about a scene, kinds by their shares, templates of a kind alike, targets balanced.

    `nouns` are all that scenes are drawn from: what is said to be absent is one of them. `absent`: share of expressions that
    name nothing, if not the usual one. KeyError for a template that there is none of.
    """
    rng = np.random.default_rng((seed, 19))
    view = View(scene, nouns)
    left = {name: TEMPLATES[name] for name in templates}
    found: dict[str, list[Found]] = {}
    asked = dict.fromkeys([*range(len(scene.objects)), None], 0)
    said: dict[str, Expression] = {}
    while left and len(said) < count:
        name = _draw_template(rng, left, absent)
        options = found.setdefault(name, list(left[name].find(view)) if name not in found else [])
        if not options:
            del left[name]
            continue
        fewest = min(asked[option.target] for option in options)
        chosen = [place for place, option in enumerate(options) if asked[option.target] == fewest]
        option = options.pop(chosen[rng.integers(len(chosen))])
        text = _say(rng, left[name], option)
        if text not in said:
            said[text] = Expression(text=text, target=option.target, kind=left[name].kind, template=name)
            asked[option.target] += 1
    return list(said.values())


def every_expression(scene: Scene, *, nouns: Sequence[str], templates: Iterable[str] = tuple(TEMPLATES)) -> list[Expression]:
    """Every expression of some templates in every wording, with its article; what training the tokenizer and the tests are about."""
    view = View(scene, nouns)
    said: dict[str, Expression] = {}
    for name in templates:
        template = TEMPLATES[name]
        for option in template.find(view):
            for text in _wordings(template, option):
                said[text] = Expression(text=text, target=option.target, kind=template.kind, template=name)
    return list(said.values())


def _draw_template(rng: np.random.Generator, left: dict[str, Template], absent: float | None) -> str:
    shares = KIND_SHARES if absent is None else _with_absent(absent)
    kinds = sorted({template.kind for template in left.values()})
    weights = np.array([shares[kind] for kind in kinds])
    weights = weights / weights.sum() if weights.sum() else np.full(len(kinds), 1 / len(kinds))
    kind = kinds[min(int(np.searchsorted(np.cumsum(weights), rng.random(), side="right")), len(kinds) - 1)]
    names = [name for name, template in left.items() if template.kind == kind]
    return names[rng.integers(len(names))]


def _with_absent(absent: float) -> dict[str, float]:
    rest = 1 - KIND_SHARES["absent"]
    return {kind: absent if kind == "absent" else share * (1 - absent) / rest for kind, share in KIND_SHARES.items()}


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
        for words in product(*(SYNONYMS.get(option.slots[slot], (option.slots[slot],)) for slot in slots)):
            text = "the " + pattern.format(**dict(zip(slots, words, strict=True)))
            yield from dict.fromkeys((text, text.replace("object", "thing")))
