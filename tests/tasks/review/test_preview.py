"""Previews: which rows they show, how these ended, and that nothing is written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of
from tests.support.tables import png, write_input
from tests.support.tables import read_rows as rows_of
from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.review.overlay import note_of, overlay
from wordmask.tasks.review.preview import preview, random_rows
from wordmask.tasks.review.sheet import TILE, contact_sheet
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import read_rows
from wordmask.tasks.table.row_groups import ReaderCache


def planned(folder: Path, queries: list[str | None], **options: int) -> tuple[Plan, RunSettings]:
    rows = [{"row_id": f"r{i}", "image": png(i), "query": query} for i, query in enumerate(queries)]
    settings = RunSettings(
        input=write_input(folder / "in.parquet", rows, row_group_size=3),
        output=str(folder / "out"),
        **options,
    )
    return plan_of(settings, REVISION), settings


def test_the_seed_decides_which_different_rows_are_shown(tmp_path: Path) -> None:
    plan, settings = planned(tmp_path, [f"thing {i}" for i in range(11)], shard_rows=5)
    store, readers = Store.open(settings.input), ReaderCache()
    drawn = [
        read_rows(store, shard, settings.segment, readers)[0]
        for shard in random_rows(plan, 20, seed=0)
    ]
    assert [[row.row_id for row in rows] for rows in drawn] == [[f"r{i}"] for i in range(11)]
    some = [[shard.first_row for shard in random_rows(plan, 4, seed)] for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert len({*some[0]}) == 4


def test_rows_of_pending_shards_are_shown_while_there_are_any(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, ["x"] * 6, shard_rows=3)
    first, second = plan.shards
    half = plan.model_copy(update={"done": frozenset({first.shard_id})})
    assert [shard.first_row for shard in random_rows(half, 9, 0)] == [3, 4, 5]
    whole = plan.model_copy(update={"done": frozenset({first.shard_id, second.shard_id})})
    assert len(list(random_rows(whole, 9, 0))) == 6


def test_a_preview_shows_the_masks_that_a_run_would_write_and_writes_nothing(
    tmp_path: Path,
) -> None:
    plan, settings = planned(tmp_path, ["one", "absent", "two"])
    page, rows = preview(plan, settings, FakeSegmenter(), 3)
    assert not (tmp_path / "out").exists()
    process_shard(plan.shards[0], settings, ShardContext(FakeSegmenter()))
    masks = rows_of(tmp_path / "out", "masks")
    images = [np.asarray(Image.open(io.BytesIO(png(i)))) for i in range(3)]
    tiles = [
        overlay(image, rle.decode(m["mask"]), m["query"], note_of(m), side=TILE)
        for image, m in zip(images, masks, strict=True)
    ]
    np.testing.assert_array_equal(np.asarray(page), np.asarray(contact_sheet(tiles)))
    assert [(row.row, row.row_id, row.ended) for row in rows] == [
        (0, "r0", "mask"),
        (1, "r1", "absent"),
        (2, "r2", "mask"),
    ]


def test_rejected_rows_are_listed_and_shown_on_the_sheet(tmp_path: Path) -> None:
    rows = [
        {"row_id": "a", "image": png(i), "query": query}
        for i, query in enumerate(["thing", "thing", None])
    ]
    settings = RunSettings(
        input=write_input(tmp_path / "in.parquet", rows), output=str(tmp_path / "out")
    )
    page, found = preview(plan_of(settings, REVISION), settings, FakeSegmenter(), 3)
    assert [row.ended for row in found] == ["mask", "duplicate_row_id", "duplicate_row_id"]
    assert found[1].note == "rejected: duplicate_row_id"
    assert page.width > 2 * TILE


def test_an_input_without_rows_has_no_preview(tmp_path: Path) -> None:
    plan, settings = planned(tmp_path, ["x"])
    with pytest.raises(InputError, match="no rows to preview"):
        preview(plan.model_copy(update={"shards": ()}), settings, FakeSegmenter(), 3)
