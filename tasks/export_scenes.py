"""Synthetic scenes with their true masks as an input table. By default those that the default model never saw."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from PIL import Image

from model import rle
from model.train.expressions import Expression, refer
from model.train.scenes import TEST_SEEDS, Scene, make_scene, pick_expressions
from model.train.splits import SPLITS
from model.train.sprites import SpriteLibrary, load, load_shipped
from tasks.tables import write_table

SCENES_PER_SEED = 1_000_000  # tables of different seeds share no scene
SHAPES = "shapes"  # scenes of coloured shapes alone, of test seeds
Sprites = Literal["fetched", "shipped"]


def export_scenes(
    dest: str,
    *,
    count: int,
    seed: int,
    queries_per_image: int = 1,
    split: str = SHAPES,
    sprites: Sprites = "fetched",
    tell: Callable[[int], object] | None = None,
) -> int:
    """Write `count` rows, `queries_per_image` expressions to a scene; how many were written. `tell`: as in `write_table`.

    The truth of an expression that names nothing is an empty mask. FileNotFoundError where sprites are not fetched.
    """
    return write_table(dest, _rows(_described(split, seed, queries_per_image, sprites), count), tell)


def _rows(described: Iterator[tuple[int, Scene, list[Expression]]], count: int) -> Iterator[dict[str, Any]]:
    written = 0
    for scene_seed, scene, expressions in described:
        buffer = io.BytesIO()
        Image.fromarray(scene.image_HW3).save(buffer, format="PNG")
        image = {"bytes": buffer.getvalue(), "path": f"scene-{scene_seed}.png"}
        for number, expression in enumerate(expressions):
            if written == count:
                return
            yield {"row_id": f"{scene_seed}-{number}", "image": image, "query": expression.text, "mask": _truth(scene, expression)}
            written += 1


def _truth(scene: Scene, expression: Expression) -> dict[str, Any]:
    nothing = np.zeros(scene.instance_HW.shape, np.uint8)
    found: dict[str, Any] = rle.encode(nothing if expression.target is None else scene.objects[expression.target].mask_HW)
    return found


def _described(split: str, seed: int, queries: int, sprites: Sprites) -> Iterator[tuple[int, Scene, list[Expression]]]:
    """The scenes of a split from a seed on, each with what is said about it."""
    if split == SHAPES:
        for scene_seed in _seeds(TEST_SEEDS, seed):
            scene = make_scene(scene_seed)
            yield scene_seed, scene, pick_expressions(scene, scene_seed, queries)
        return
    chosen = SPLITS[split]
    library: SpriteLibrary = (load() if sprites == "fetched" else load_shipped()).only(chosen.styles)
    for scene_seed in _seeds(chosen.seeds, seed):
        scene = make_scene(scene_seed, sprites=library)
        yield scene_seed, scene, refer(scene, scene_seed, queries, nouns=library.nouns, templates=chosen.templates)


def _seeds(seeds: range, seed: int) -> range:
    first = seeds.start + seed * SCENES_PER_SEED
    return range(first, min(first + SCENES_PER_SEED, seeds.stop))
