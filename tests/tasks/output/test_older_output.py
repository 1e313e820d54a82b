"""Outputs of versions before manifests: every reader reads them, and a run takes them up."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import wordmask
from tests.support.fakes import REVISION
from tests.support.older_output import make_older
from tests.support.runs import GOOD, carry_out, compute_again, plan_of, settings_for
from tests.support.tables import png, read_rows
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import newest_run, published_runs, status
from wordmask.tasks.output.garbage import find_garbage, remove_files
from wordmask.tasks.output.results import evaluate, rejected
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.review.sheet import sheet
from wordmask.tasks.storage import Store

ROWS = [
    GOOD | {"row_id": "r0"},
    GOOD | {"row_id": "r1", "query": "absent"},
    {"row_id": "r2", "image": "late.png", "query": "a thing"},
    GOOD | {"row_id": "r3", "query": ""},
]


@pytest.fixture
def older(tmp_path: Path) -> RunSettings:
    """Settings of a run whose output has the form of older versions."""
    settings = settings_for(tmp_path, ROWS, shard_rows=2)
    carry_out(plan_of(settings, REVISION), settings)
    make_older(settings.output)
    return settings


def test_every_reader_reads_it(older: RunSettings, tmp_path: Path) -> None:
    output = Store.open(older.output)
    found = status(output)
    assert (found.runs[0].rows, found.shards, found.unpublished) == (4, 2, 0)
    report = verify_output(output)
    assert (report.violations, report.rows, report.shards) == ((), 4, 2)
    assert {each.code: each.rows for each in rejected(output, 1)} == {
        RejectCode.IMAGE_NOT_FOUND: 1,
        RejectCode.EMPTY_QUERY: 1,
    }
    masks = wordmask.open_masks(older.output).to_table()
    assert masks["row_id"].to_pylist() == ["r0", "r1"]
    truth = Store.open(str(tmp_path / "truth.parquet"))
    pq.write_table(masks.select(["row_id", "mask"]), tmp_path / "truth.parquet")
    assert evaluate(output, truth).rows == 2
    assert sheet(output, 2).width > 0
    assert find_garbage(output).paths == ()


def test_nothing_is_computed_again_and_the_next_run_is_published_in_the_new_form(
    older: RunSettings,
) -> None:
    output = Store.open(older.output)
    before = read_rows(older.output, "masks")
    asked, _ = carry_out(plan_of(older, REVISION), older)
    assert asked == []
    assert newest_run(output).index
    assert read_rows(older.output, "masks") == before
    assert verify_output(output).holds
    assert find_garbage(output).paths == ()
    remove_files(output, find_garbage(output, keep_runs=1).files, lambda: None)
    assert [run.index != "" for run in published_runs(output)] == [True]
    assert verify_output(output).holds


def test_its_rejected_rows_are_retried(older: RunSettings, tmp_path: Path) -> None:
    (tmp_path / "late.png").write_bytes(png(2))
    plan, settings = retry_plan(Store.open(older.output), (RejectCode.IMAGE_NOT_FOUND,))
    asked, _ = carry_out(plan, settings)
    assert asked == ["a thing"]
    assert {row["row_id"] for row in read_rows(older.output, "masks")} == {"r0", "r1", "r2"}
    assert verify_output(Store.open(older.output)).holds


def test_a_receipt_that_was_replaced_since_it_was_published_does_not_count(
    older: RunSettings, tmp_path: Path
) -> None:
    """As a late worker did it in older versions; what it wrote lies beside what was published."""
    before = read_rows(older.output, "rejects")
    (tmp_path / "late.png").write_bytes(png(2))
    compute_again(plan_of(older, REVISION), older)
    assert carry_out(plan_of(older, REVISION), older)[0] == []
    assert read_rows(older.output, "rejects") == before
    head = newest_run(Store.open(older.output))
    assert (head.masks, head.absent, head.rejects) == (
        2,
        1,
        {"empty_query": 1, "image_not_found": 1},
    )
    assert verify_output(Store.open(older.output)).holds


def test_a_shard_whose_receipt_is_gone_is_named_and_computed_again(older: RunSettings) -> None:
    receipt = sorted(Path(older.output, "receipts").iterdir())[0]
    receipt.unlink()
    output = Store.open(older.output)
    assert f"shard {receipt.stem}: has no receipt" in verify_output(output).violations
    plan = plan_of(older, REVISION)
    assert [shard.shard_id for shard in plan.pending] == [receipt.stem]
    carry_out(plan, older)
    assert verify_output(output).holds
