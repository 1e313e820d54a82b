"""Synthetic scenes with their true masks as an input table. By default those that the default model
never saw.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from wordmask.model.masks import rle
from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.expressions import Expression
from wordmask.model.scenes.splits import SPLITS
from wordmask.schemas.training import SCENES_PER_SEED, Artwork
from wordmask.tasks.table.truth import write_table


def export_scenes(
    dest: str,
    *,
    count: int,
    seed: int,
    queries_per_image: int = 1,
    split: str = "test",
    sprites: Artwork = "shipped",
    tell: Callable[[int], object] | None = None,
) -> int:
    """Write `count` rows, `queries_per_image` expressions to a scene; how many were written.
    `tell`: as in `write_table`.

    The truth of an expression that names nothing is an empty mask. FileNotFoundError where sprites
    are not fetched.
    """
    return write_table(
        dest, _rows(_described(split, seed, queries_per_image, sprites), count), tell
    )


def _rows(
    described: Iterator[tuple[int, Scene, list[Expression]]], count: int
) -> Iterator[dict[str, Any]]:
    written = 0
    for scene_seed, scene, expressions in described:
        buffer = io.BytesIO()
        Image.fromarray(scene.image_HW3).save(buffer, format="PNG")
        image = {"bytes": buffer.getvalue(), "path": f"scene-{scene_seed}.png"}
        for number, expression in enumerate(expressions):
            if written == count:
                return
            truth = rle.encode(scene.truth(expression.target))
            yield {
                "row_id": f"{scene_seed}-{number}",
                "image": image,
                "query": expression.text,
                "mask": truth,
            }
            written += 1


def _described(
    split: str, seed: int, queries: int, sprites: Artwork
) -> Iterator[tuple[int, Scene, list[Expression]]]:
    """The scenes of a split from a seed on, each with what is said about it."""
    questions = SceneDataset(sprites, split)
    seeds = SPLITS[questions.split].seeds
    first = seeds.start + seed * SCENES_PER_SEED
    for scene_seed in range(first, min(first + SCENES_PER_SEED, seeds.stop)):
        scene = questions.scene(scene_seed)
        yield scene_seed, scene, questions.expressions(scene, scene_seed, queries)
