"""Synthetic scenes with their true masks, as an input table.

By default they are scenes that the default model never saw.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

from PIL import Image

from wordmask.model.masks import rle
from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.expressions import Expression
from wordmask.model.scenes.splits import SPLITS
from wordmask.schemas.training import SCENES_PER_SEED, Artwork
from wordmask.tasks.table.truth import OnRows, ignore_rows, write_table

DescribedScene = tuple[int, Scene, list[Expression]]


def export_scenes(
    dest: str,
    *,
    count: int,
    seed: int,
    queries_per_image: int = 1,
    split: str = "test",
    sprites: Artwork = "shipped",
    on_rows: OnRows = ignore_rows,
) -> int:
    """Write a table of scenes, each with some expressions.

    The truth of an expression that names nothing is an empty mask.

    Args:
        dest: path or URI of the file.
        count: rows to write.
        seed: tables of different seeds share no scene.
        queries_per_image: expressions about each scene.
        split: the split that scenes and expressions are taken from.
        sprites: the artwork.
        on_rows: as in `write_table`.

    Returns:
        How many rows were written.

    Raises:
        FileNotFoundError: sprites are wanted that are not fetched.
    """
    scenes = _described(split, seed, queries_per_image, sprites)
    return write_table(dest, islice(_rows(scenes), count), on_rows)


def _rows(scenes: Iterator[DescribedScene]) -> Iterator[dict[str, Any]]:
    for scene_seed, scene, expressions in scenes:
        buffer = io.BytesIO()
        Image.fromarray(scene.image_HW3).save(buffer, format="PNG")
        image = {"bytes": buffer.getvalue(), "path": f"scene-{scene_seed}.png"}
        for number, expression in enumerate(expressions):
            yield {
                "row_id": f"{scene_seed}-{number}",
                "image": image,
                "query": expression.text,
                "mask": rle.encode(scene.truth(expression.target)),
            }


def _described(split: str, seed: int, queries: int, sprites: Artwork) -> Iterator[DescribedScene]:
    """Yield the scenes of a table, each with its seed and expressions about it."""
    dataset = SceneDataset(sprites, split)
    seeds = SPLITS[dataset.split].seeds
    first = seeds.start + seed * SCENES_PER_SEED
    for scene_seed in range(first, min(first + SCENES_PER_SEED, seeds.stop)):
        scene = dataset.scene(scene_seed)
        yield scene_seed, scene, dataset.expressions(scene, scene_seed, queries)
