"""Which scenes are for training and which for tests: splits share no seed, and two test splits hold
out a style and some templates.
"""

from __future__ import annotations

from dataclasses import dataclass

from wordmask.model.scenes.compose import TEST_SEEDS, TRAIN_SEEDS, VAL_SEEDS
from wordmask.model.scenes.sprites import HELD_OUT_STYLE, TRAIN_STYLES
from wordmask.model.scenes.templates import HELD_OUT_TEMPLATES, TEMPLATES

TRAIN_TEMPLATES = tuple(name for name in TEMPLATES if name not in HELD_OUT_TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Seeds of its scenes, styles of their sprites, templates of what is said about them."""

    seeds: range
    styles: tuple[str, ...] = TRAIN_STYLES
    templates: tuple[str, ...] = TRAIN_TEMPLATES


SPLITS = {
    "train": Split(seeds=TRAIN_SEEDS),
    "val": Split(seeds=VAL_SEEDS),
    "test": Split(seeds=TEST_SEEDS),
    "test-style": Split(seeds=range(3 * 10**8, 4 * 10**8), styles=(HELD_OUT_STYLE,)),
    "test-relation": Split(seeds=range(4 * 10**8, 5 * 10**8), templates=HELD_OUT_TEMPLATES),
}
