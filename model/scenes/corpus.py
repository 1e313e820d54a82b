"""Lines of text with every word that expressions about scenes may hold: what the tokenizer learns
its pieces from.
"""

from __future__ import annotations

from collections.abc import Iterator

from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.nouns import NOUNS
from wordmask.model.scenes.shapes import SHAPES
from wordmask.model.scenes.templates import ORDINALS, SYNONYMS, TEMPLATES

STEP = 5  # every so many nouns are said with each word that is no noun


def grammar_lines() -> Iterator[str]:
    """Every noun in every colour, and every other word of the grammar beside many a noun. The same
    each time.
    """
    nouns = (*NOUNS, *SHAPES, "object", "thing")
    colours = [word for colour in COLOUR_NAMES for word in SYNONYMS.get(colour, (colour,))]
    words = [word for group in SYNONYMS.values() for word in group] + list(ORDINALS)
    patterns = [wording for template in TEMPLATES.values() for wording in template.wordings]
    for number, noun in enumerate(nouns):
        yield from (f"the {colour} {noun}" for colour in colours)
        yield from (f"the {word} {noun}" for word in words[number % STEP :: STEP])
        slots = dict.fromkeys("pabcors", f"the {noun}") | {"z": colours[number % len(colours)]}
        yield from (pattern.format(**slots) for pattern in patterns[number % STEP :: STEP])
