"""Splits of the scenes: no two share a seed, and two test splits hold out a style or templates."""

from __future__ import annotations

from dataclasses import dataclass

from wordmask.model.scenes.sprites import HELD_OUT_STYLE, TRAIN_STYLES
from wordmask.model.scenes.templates import HELD_OUT_TEMPLATES, TEMPLATES

SEEDS_OF_A_SPLIT = 10**8
TRAIN_TEMPLATES = tuple(name for name in TEMPLATES if name not in HELD_OUT_TEMPLATES)


def _seeds(number: int) -> range:
    return range(number * SEEDS_OF_A_SPLIT, (number + 1) * SEEDS_OF_A_SPLIT)


TRAIN_SEEDS = _seeds(0)
VAL_SEEDS = _seeds(1)
TEST_SEEDS = _seeds(2)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The seeds of a split's scenes, the styles of their sprites, the templates about them."""

    seeds: range
    styles: tuple[str, ...] = TRAIN_STYLES
    templates: tuple[str, ...] = TRAIN_TEMPLATES


SPLITS = {
    "train": Split(seeds=TRAIN_SEEDS),
    "val": Split(seeds=VAL_SEEDS),
    "test": Split(seeds=TEST_SEEDS),
    "test-style": Split(seeds=_seeds(3), styles=(HELD_OUT_STYLE,)),
    "test-relation": Split(seeds=_seeds(4), templates=HELD_OUT_TEMPLATES),
}
