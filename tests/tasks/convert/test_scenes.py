"""Synthetic tables: test scenes only, the same every time, with the scene's own masks as truth."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wordmask.model.masks import rle
from wordmask.model.scenes.compose import make_scene
from wordmask.model.scenes.splits import SPLITS, TEST_SEEDS
from wordmask.model.scenes.sprites import TRAIN_STYLES, load_shipped
from wordmask.schemas.queries import InputError
from wordmask.tasks.convert.scenes import export_scenes
from wordmask.tasks.convert.sprites import sprites_at_hand


def rows_of(path: Path, count: int, seed: int, queries_per_image: int = 1) -> list[dict[str, Any]]:
    assert (
        export_scenes(str(path), count=count, seed=seed, queries_per_image=queries_per_image)
        == count
    )
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def seeds_of(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["row_id"].split("-")[0]) for row in rows]


def test_rows_show_the_scene_and_the_truth_is_one_of_its_objects(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.parquet", 6, 0)
    assert len({row["row_id"] for row in rows}) == 6
    for row, seed in zip(rows, seeds_of(rows), strict=True):
        assert seed in TEST_SEEDS
        scene = make_scene(seed, sprites=load_shipped().only(TRAIN_STYLES))
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), scene.image_HW3
        )
        truth = rle.decode(row["mask"])
        assert not truth.any() or any(
            np.array_equal(truth, thing.mask_HW) for thing in scene.objects
        )


def test_the_same_seed_gives_the_same_bytes_and_another_shares_no_scene(tmp_path: Path) -> None:
    first = rows_of(tmp_path / "a.parquet", 4, 3)
    rows_of(tmp_path / "b.parquet", 4, 3)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert set(seeds_of(first)).isdisjoint(seeds_of(rows_of(tmp_path / "c.parquet", 4, 4)))


def test_several_expressions_about_one_scene(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.parquet", 7, 1, queries_per_image=3)
    assert len(set(seeds_of(rows))) < 7
    assert len({(seed, row["query"]) for seed, row in zip(seeds_of(rows), rows, strict=True)}) == 7


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name the Parquet file"):
        export_scenes(str(tmp_path), count=1, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_a_split_are_of_its_seeds_and_absent_ones_have_empty_masks(
    tmp_path: Path, split: str
) -> None:
    path = tmp_path / "a.parquet"
    assert (
        export_scenes(
            str(path), count=40, seed=1, queries_per_image=4, split=split, sprites="shipped"
        )
        == 40
    )
    rows = pq.read_table(path).to_pylist()
    library = load_shipped().only(SPLITS[split].styles)
    empty = 0
    for row, seed in zip(rows, seeds_of(rows), strict=True):
        assert seed in SPLITS[split].seeds
        scene = make_scene(seed, sprites=library)
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), scene.image_HW3
        )
        truth = rle.decode(row["mask"])
        assert not truth.any() or any(
            np.array_equal(truth, thing.mask_HW) for thing in scene.objects
        )
        empty += int(not truth.any())
    assert (empty == 0) if split == "test-relation" else (0 < empty < 20)


def test_sprites_that_are_not_fetched_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="wordmask train scenes --fetch"):
        export_scenes(str(tmp_path / "a.parquet"), count=1, seed=0, sprites="fetched")
    with pytest.raises(FileNotFoundError, match="wordmask train scenes --fetch"):
        sprites_at_hand()
    assert not (tmp_path / "a.parquet").exists()
