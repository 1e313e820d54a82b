"""Expressions about scenes, in words: most name exactly one object, and some name none.

An expression is true by construction, and never a close call: its object is apart from everything
else by a margin of size, position or colour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from string import Formatter

import numpy as np
from numpy.random import Generator

from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.finders.positions import ORDINALS
from wordmask.model.scenes.finders.terms import ANY_NOUN, Found
from wordmask.model.scenes.nouns import NOUNS
from wordmask.model.scenes.relations import SceneRelations
from wordmask.model.scenes.shapes import SHAPES
from wordmask.model.scenes.templates import SYNONYMS, TEMPLATES, Template, synonyms

# Of expressions about a scene that has something to say of each kind.
KIND_SHARES = {
    "attribute": 0.27,
    "size": 0.13,
    "position": 0.2,
    "ordinal": 0.08,
    "relation": 0.32,
}
ABSENT_SHARE = 0.12
ARTICLE_SHARE = 0.7  # of expressions that begin with "the"
NOUN_SHARE = 0.75  # of expressions that could name a noun, or any object
THING_SHARE = 0.4  # of objects without a noun that are called things
STEP = 5  # in the grammar's lines, of the nouns that stand beside one word that is no noun


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A text that names object number `target` of a scene and no other; None: nothing in it.

    `kind` is one of `KIND_SHARES`, or "absent"; `template` is the name of its pattern.
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
    """Draw up to `count` different expressions about a scene.

    Kinds come by their shares, templates of a kind evenly, and targets as evenly as they can.

    Args:
        nouns: all that scenes are drawn from; what is said to be absent is one of them.
        templates: names of those to use.
        absent: share of expressions that name nothing. At 0 there are none; else there are more
            where a scene gives nothing else to say.

    Raises:
        KeyError: for a template that there is none of.
    """
    left = {name: TEMPLATES[name] for name in templates}
    if not absent:
        left = {name: template for name, template in left.items() if not template.is_absent}
    sampler = _Sampler(
        rng=np.random.default_rng((seed, 19)),
        relations=SceneRelations(scene, nouns),
        left=left,
        absent=absent,
    )
    return sampler.sample(count)


def all_expressions(
    scene: Scene, *, nouns: Sequence[str], templates: Iterable[str] = tuple(TEMPLATES)
) -> list[Expression]:
    """Return every expression of some templates in every wording, with its article."""
    relations = SceneRelations(scene, nouns)
    found: dict[str, Expression] = {}
    for name in templates:
        template = TEMPLATES[name]
        for option in template.find(relations):
            for text in _wordings(template, option):
                found[text] = _expression(text, name, option)
    return list(found.values())


def grammar_lines() -> Iterator[str]:
    """Yield lines of text with every word of the grammar, for the tokenizer to learn from.

    Every noun stands in every colour, and every other word beside many a noun.
    """
    nouns = (*NOUNS, *SHAPES, ANY_NOUN, "thing")
    colours = list(chain.from_iterable(map(synonyms, COLOUR_NAMES)))
    words = [*chain.from_iterable(SYNONYMS.values()), *ORDINALS]
    patterns = list(chain.from_iterable(template.wordings for template in TEMPLATES.values()))
    for number, noun in enumerate(nouns):
        for colour in colours:
            yield f"the {colour} {noun}"
        for word in words[number % STEP :: STEP]:
            yield f"the {word} {noun}"
        slots = dict.fromkeys("pabcors", f"the {noun}")
        slots["z"] = colours[number % len(colours)]
        for pattern in patterns[number % STEP :: STEP]:
            yield pattern.format(**slots)


@dataclass
class _Sampler:
    """Draws expressions about one scene.

    `left` are the templates that still find something, `options` what they found and was not used;
    `uses` counts the expressions of each target.
    """

    rng: Generator
    relations: SceneRelations
    left: dict[str, Template]
    absent: float
    uses: Counter[int | None] = field(default_factory=Counter)
    options: dict[str, list[Found]] = field(default_factory=dict)

    def sample(self, count: int) -> list[Expression]:
        found: dict[str, Expression] = {}
        wants_absent = self._wants_absent()
        while self.left and len(found) < count:
            name = self._draw_template(wants_absent)
            options = self._options_of(name)
            if not options:
                del self.left[name]
                continue
            option = self._pop(options)
            text = self._word(TEMPLATES[name], option)
            if text not in found:
                found[text] = _expression(text, name, option)
                self.uses[option.target] += 1
                wants_absent = self._wants_absent()
        return list(found.values())

    def _wants_absent(self) -> bool:
        return self.rng.random() < self.absent

    def _options_of(self, name: str) -> list[Found]:
        """Return what is left of a template's options."""
        if name not in self.options:
            found = TEMPLATES[name].find(self.relations)
            self.options[name] = list(found)
        return self.options[name]

    def _draw_template(self, absent: bool) -> str:
        """Draw a template of a kind drawn by its share; about nothing or not, as far as can be."""
        by_kind: dict[str, list[str]] = {}
        for name, template in self.left.items():
            if template.is_absent == absent:
                by_kind.setdefault(template.kind, []).append(name)
        if not by_kind:
            return self._draw_template(not absent)
        kinds = sorted(by_kind)
        shares = [KIND_SHARES.get(kind, 1.0) for kind in kinds]
        kind = kinds[self._weighted(shares)]
        return self._one_of(by_kind[kind])

    def _weighted(self, weights: Sequence[float]) -> int:
        """Draw an index by weights of any sum."""
        sums = np.cumsum(weights)
        point = self.rng.random() * sums[-1]
        return int(np.searchsorted(sums[:-1], point, side="right"))

    def _pop(self, options: list[Found]) -> Found:
        """Take an option of a target with the fewest uses, rather with a noun than without."""
        uses = [self.uses[option.target] for option in options]
        fewest = min(uses)
        best = [index for index, count in enumerate(uses) if count == fewest]
        named = [index for index in best if options[index].has_noun]
        if named and self.rng.random() < NOUN_SHARE:
            best = named
        index = best[self.rng.integers(len(best))]
        return options.pop(index)

    def _word(self, template: Template, option: Found) -> str:
        """Put an option into one of its many wordings."""
        pattern = self._one_of(template.wordings)
        words = {slot: self._synonym(word) for slot, word in option.slots.items()}
        text = pattern.format(**words)
        if self.rng.random() < THING_SHARE:
            text = text.replace(ANY_NOUN, "thing")
        if self.rng.random() < ARTICLE_SHARE:
            return f"the {text}"
        return text

    def _synonym(self, word: str) -> str:
        words = synonyms(word)
        if len(words) == 1:
            return words[0]
        return self._one_of(words)

    def _one_of(self, options: Sequence[str]) -> str:
        index = int(self.rng.integers(len(options)))
        return options[index]


def _expression(text: str, name: str, option: Found) -> Expression:
    return Expression(
        text=text,
        target=option.target,
        kind=TEMPLATES[name].kind,
        template=name,
    )


def _wordings(template: Template, option: Found) -> Iterator[str]:
    """Yield every wording of an option, for objects and for things."""
    for pattern in template.wordings:
        parsed = Formatter().parse(pattern)
        slots = [slot for _, slot, _, _ in parsed if slot]
        choices = [synonyms(option.slots[slot]) for slot in slots]
        for words in product(*choices):
            filled = dict(zip(slots, words, strict=True))
            text = "the " + pattern.format(**filled)
            yield from dict.fromkeys((text, text.replace(ANY_NOUN, "thing")))
