"""From a table to masks, rejects, receipts and a summary, with a fake model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fakes import REVISION
from tests.support.runs import (
    GOOD,
    plan_of,
    publish_run,
    require_every_row_once,
    run_all,
    settings_for,
)
from tests.support.tables import part_of, png, read_rows, write_input
from wordmask.model.masks import rle
from wordmask.model.masks.rasterize import rasterize_pixels
from wordmask.schemas.masks import MASKS
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.output.catalog import newest_run, status
from wordmask.tasks.storage import Store


def test_rows_become_masks_that_mean_what_they_say(tmp_path: Path) -> None:
    rows = [
        {"row_id": f"r{i}", "image": png(i // 2, height=40, width=50), "query": f"thing {i}"}
        for i in range(7)
    ]
    plan = run_all(settings_for(tmp_path, rows, shard_rows=3))
    masks = read_rows(tmp_path / "out", "masks")
    assert sorted(row["row_id"] for row in masks) == [f"r{i}" for i in range(7)]
    assert len(plan.shards) == 3
    for row in masks:
        assert row["mask"]["size"] == [row["height"], row["width"]] == [40, 50]
        mask = rle.decode(row["mask"])
        assert row["area"] == mask.sum()
        np.testing.assert_array_equal(rasterize_pixels(row["path"], 40, 50), mask)
    assert len({row["image_id"] for row in masks}) == 4


def test_columns_have_fixed_types_from_the_first_row_on(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [{"image": None, "query": "x"}])
    (shard,) = run_all(settings).shards
    assert pq.read_schema(part_of(tmp_path / "out", "masks", shard.shard_id)).equals(MASKS)


BAD_ROWS: list[tuple[dict[str, Any], RejectCode]] = [
    ({"image": None}, RejectCode.MISSING_IMAGE),
    ({"image": {"bytes": None, "path": None}}, RejectCode.MISSING_IMAGE),
    ({"image": "nowhere.png"}, RejectCode.IMAGE_NOT_FOUND),
    ({"image": b""}, RejectCode.IMAGE_EMPTY),
    ({"image": b"not an image"}, RejectCode.IMAGE_UNREADABLE),
    ({"image": png(2, height=80, width=80)[:2000]}, RejectCode.IMAGE_TRUNCATED),
    ({"image": png(3, height=90, width=90)}, RejectCode.IMAGE_TOO_LARGE),
    ({"image": "https://example.invalid/a.png"}, RejectCode.URI_NOT_ALLOWED),
    ({"query": None}, RejectCode.EMPTY_QUERY),
    ({"query": " \t"}, RejectCode.EMPTY_QUERY),
    ({"query": "word " * 100}, RejectCode.QUERY_TOO_LONG),
    ({"spatial_refs": [[0.5]]}, RejectCode.BAD_SPATIAL_REF),
    ({"spatial_refs": [[0.5, None]]}, RejectCode.BAD_SPATIAL_REF),
    ({"spatial_refs": [[0.5, 1.5]]}, RejectCode.SPATIAL_REF_OUT_OF_RANGE),
    ({"row_id": "good-0"}, RejectCode.DUPLICATE_ROW_ID),
    ({"mode": "all"}, RejectCode.UNSUPPORTED_MODE),
    ({"query": "explode"}, RejectCode.MODEL_ERROR),
]


def test_every_code_is_tried() -> None:
    elsewhere = {
        RejectCode.INVALID_TEXT,
        RejectCode.IMAGE_FORBIDDEN,
        RejectCode.IMAGE_UNREACHABLE,
        RejectCode.WORKER_KILLED,
    }  # below, test_https.py (two), test_segment.py
    assert {code for _, code in BAD_ROWS} | elsewhere == set(RejectCode)
    assert all(code.remedy for code in RejectCode)


@pytest.mark.parametrize(("bad", "code"), BAD_ROWS)
def test_a_bad_row_is_rejected_and_its_neighbours_are_unharmed(
    tmp_path: Path, bad: dict[str, Any], code: RejectCode
) -> None:
    neighbours = [
        GOOD
        | {
            "row_id": f"good-{i}",
            "mode": None,
            "spatial_refs": [[0.1, 0.2], [0.1, 0.1, 0.5, 0.5]],
        }
        for i in range(4)
    ]
    row = GOOD | {"row_id": "bad", "mode": "one", "spatial_refs": None} | bad
    settings = settings_for(
        tmp_path,
        [*neighbours[:2], row, *neighbours[2:]],
        segment=SegmentSettings(max_image_pixels=8000),
    )
    plan = run_all(settings)
    (reject,) = read_rows(tmp_path / "out", "rejects")
    assert (reject["row"], reject["code"]) == (2, code)
    assert reject["detail"]
    assert [mask["row_id"] for mask in read_rows(tmp_path / "out", "masks")] == [
        f"good-{i}" for i in range(4)
    ]
    require_every_row_once(plan, settings)


@pytest.mark.parametrize("column", ["row_id", "query", "image", "note"])
def test_text_that_is_no_utf8_costs_its_own_row_only(tmp_path: Path, column: str) -> None:
    def text(name: str) -> pa.Array:
        values = [f"r{i}".encode() for i in range(3)] if name == "row_id" else [b"good"] * 3
        return pa.array(
            [values[0], b"b\xff\xfed", values[2]] if name == column else values, pa.binary()
        ).view(pa.string())

    image = pa.StructArray.from_arrays(
        [pa.array([png(i) for i in range(3)]), text("image")], ["bytes", "path"]
    )
    columns = {name: text(name) for name in ("row_id", "query", "note")} | {"image": image}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    settings = RunSettings.model_validate(
        {
            "input": str(tmp_path / "in.parquet"),
            "output": str(tmp_path / "out"),
            "segment": {"carry": ["note"]},
        }
    )
    require_every_row_once(run_all(settings), settings)
    (reject,) = read_rows(tmp_path / "out", "rejects")
    assert (reject["row"], reject["code"]) == (1, RejectCode.INVALID_TEXT)
    assert column in reject["detail"]
    assert [mask["row_id"] for mask in read_rows(tmp_path / "out", "masks")] == ["r0", "r2"]


def test_all_kinds_of_bad_rows_in_one_table_end_as_rejects(tmp_path: Path) -> None:
    blank = {"mode": None, "spatial_refs": None}
    rows = [GOOD | blank | {"row_id": f"bad-{i}"} | bad for i, (bad, _) in enumerate(BAD_ROWS)]
    settings = settings_for(
        tmp_path,
        [GOOD | blank | {"row_id": "good-0"}, *rows],
        segment=SegmentSettings(max_image_pixels=8000),
        shard_rows=5,
    )
    plan = run_all(settings)
    require_every_row_once(plan, settings)
    assert sorted(reject["code"] for reject in read_rows(tmp_path / "out", "rejects")) == sorted(
        code.value for _, code in BAD_ROWS
    )


def test_running_out_of_memory_is_not_the_rows_fault(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD, GOOD | {"query": "out of memory"}])
    with pytest.raises(MemoryError):
        run_all(settings)
    assert not (tmp_path / "out").exists()


def test_row_ids_are_those_of_the_table_or_derived(tmp_path: Path) -> None:
    run_all(
        settings_for(
            tmp_path, [GOOD | {"row_id": 7}, GOOD | {"row_id": None}, GOOD | {"row_id": None}]
        )
    )
    ids = [row["row_id"] for row in read_rows(tmp_path / "out", "masks")]
    assert ids[0] == "7"
    assert len(set(ids)) == 3


def test_carried_columns_keep_their_types(tmp_path: Path) -> None:
    rows = [GOOD | {"split": "val", "weight": 0.5}, GOOD | {"split": None, "weight": None}]
    settings = settings_for(tmp_path, rows, segment=SegmentSettings(carry=("split", "weight")))
    run_all(settings)
    found = read_rows(tmp_path / "out", "masks")
    assert [(row["split"], row["weight"]) for row in found] == [("val", 0.5), (None, None)]


def test_image_files_are_read_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    run_all(
        settings_for(
            tmp_path,
            [
                {"image": "a.png", "query": "x"},
                {"image": {"bytes": png(5), "path": "b.png"}, "query": "x"},
            ],
        )
    )
    first, second = read_rows(tmp_path / "out", "masks")
    assert first["image_id"] == second["image_id"]
    assert (first["image_uri"], second["image_uri"]) == ("a.png", "b.png")


def test_two_runs_from_scratch_write_the_same_bytes(tmp_path: Path) -> None:
    rows = [GOOD | {"query": f"thing {i}"} for i in range(10)] + [GOOD | {"query": None}]
    settings = settings_for(tmp_path, rows, shard_rows=4)
    run_all(settings)
    again = settings.model_copy(update={"output": str(tmp_path / "again"), "batch_rows": 3})
    run_all(again)
    for kind in ("masks", "rejects"):
        parts = {part.name: part.read_bytes() for part in (tmp_path / "out" / kind).iterdir()}
        assert parts == {
            part.name: part.read_bytes() for part in (tmp_path / "again" / kind).iterdir()
        }


def test_of_runs_in_one_second_the_last_is_the_newest(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD])
    for _ in range(8):
        plan = run_all(settings)
        summary = publish_run(plan, settings)
        assert newest_run(Store.open(settings.output)).run_id == summary.run_id


def test_summary_adds_up_and_is_what_status_tells(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, [GOOD, GOOD | {"query": "absent"}, GOOD | {"query": None}], shard_rows=2
    )
    assert status(Store.open(settings.output)).runs == ()
    plan = run_all(settings)
    assert status(Store.open(settings.output)).unpublished == 2
    summary = publish_run(plan, settings)
    assert (summary.rows, summary.masks, summary.absent, summary.rejects) == (
        3,
        2,
        1,
        {"empty_query": 1},
    )
    found = status(Store.open(settings.output))
    assert (found.runs, found.shards, found.unpublished) == ((summary,), 2, 0)
    assert newest_run(Store.open(settings.output)) == summary


def test_object_storage_end_to_end(tmp_path: Path, s3: str) -> None:
    store = Store.open(f"{s3}/pipeline")
    local = write_input(
        tmp_path / "in.parquet",
        [{"image": "pictures/a.png", "query": "x"}, GOOD, GOOD | {"query": None}],
    )
    store.write_bytes("in.parquet", Path(local).read_bytes())
    store.write_bytes("pictures/a.png", png(5))
    settings = RunSettings(
        input=f"{s3}/pipeline/in.parquet", output=f"{s3}/pipeline/out", shard_rows=2
    )
    plan = run_all(settings)
    require_every_row_once(plan, settings)
    publish_run(plan, settings)
    summary = newest_run(Store.open(settings.output))
    assert (summary.masks, summary.rejects) == (2, {"empty_query": 1})
    assert plan_of(settings, REVISION).pending == ()
