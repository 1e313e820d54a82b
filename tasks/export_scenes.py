"""Synthetic scenes with their true masks as an input table. Test seeds only: the default model never saw them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from model import rle
from model.train.scenes import TEST_SEEDS, make_scene, pick_expressions
from tasks.tables import write_table

SCENES_PER_SEED = 1_000_000  # tables of different seeds share no scene


def export_scenes(dest: str, *, count: int, seed: int, queries_per_image: int = 1, tell: Callable[[int], object] | None = None) -> int:
    """Write `count` rows, `queries_per_image` expressions to a scene; how many were written. `tell`: as in `write_table`."""
    return write_table(dest, _rows(count, seed, queries_per_image), tell)


def _rows(count: int, seed: int, queries_per_image: int) -> Iterator[dict[str, Any]]:
    written = 0
    first = TEST_SEEDS.start + seed * SCENES_PER_SEED
    for scene_seed in range(first, min(first + SCENES_PER_SEED, TEST_SEEDS.stop)):
        scene = make_scene(scene_seed)
        buffer = io.BytesIO()
        Image.fromarray(scene.image_HW3).save(buffer, format="PNG")
        image = {"bytes": buffer.getvalue(), "path": f"scene-{scene_seed}.png"}
        for number, expression in enumerate(pick_expressions(scene, scene_seed, queries_per_image)):
            if written == count:
                return
            truth = rle.encode(scene.objects[expression.target].mask_HW)
            yield {"row_id": f"{scene_seed}-{number}", "image": image, "query": expression.text, "mask": truth}
            written += 1
