"""An output after its runs: verification, reasons of rejects, and removal of garbage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, publish_run
from tests.support.tables import png, write_input
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output.catalog import status
from wordmask.tasks.output.garbage import find_garbage, remove_files
from wordmask.tasks.output.results import rejected
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store

QUERIES = ["a", "", "c", "explode", "", "f", "g"]


def run(tmp_path: Path, revision: str = REVISION, *, published: bool = True) -> RunSettings:
    write_input(
        tmp_path / "in.parquet",
        [{"row_id": f"r{i}", "image": png(i), "query": query} for i, query in enumerate(QUERIES)],
    )
    settings = RunSettings(
        input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), shard_rows=3
    )
    plan, model = plan_of(settings, revision), FakeSegmenter()
    model.revision = revision
    for shard in plan.pending:
        process_shard(shard, settings, ShardContext(model))
    if published:
        publish_run(plan, settings)
    return settings


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def test_an_untouched_output_has_no_violations(tmp_path: Path) -> None:
    report = verify_output(Store.open(run(tmp_path).output))
    assert (report.holds, report.rows, report.shards) == (True, 7, 3)
    with pytest.raises(FileNotFoundError, match="no published run"):
        verify_output(Store.open(str(tmp_path / "nowhere")))


def test_lost_and_changed_parts_are_named(tmp_path: Path) -> None:
    output = Path(run(tmp_path).output)
    masks, rejects = sorted((output / "masks").iterdir()), sorted((output / "rejects").iterdir())
    masks[0].unlink()
    rejects[1].write_bytes(rejects[1].read_bytes() + b"x")
    report = verify_output(Store.open(str(output)))
    assert not report.holds
    words = "\n".join(report.violations)
    assert f"masks/{masks[0].name} is missing" in words
    assert f"{rejects[1].name} " in words


def test_rejects_by_code_with_examples(tmp_path: Path) -> None:
    found = rejected(Store.open(run(tmp_path).output), examples=1)
    assert [(each.code, each.rows) for each in found] == [
        (RejectCode.EMPTY_QUERY, 2),
        (RejectCode.MODEL_ERROR, 1),
    ]
    assert [each.examples for each in found] == [
        (("r1", "query = ''"),),
        (("r3", "RuntimeError: this row is explosive"),),
    ]
    assert [each.examples for each in rejected(Store.open(str(tmp_path / "out")), examples=0)] == [
        (),
        (),
    ]


def test_files_that_no_published_run_names_are_garbage(tmp_path: Path) -> None:
    output = Path(run(tmp_path).output)
    kept = files(output)
    assert find_garbage(Store.open(str(output))).paths == ()
    for path in output.rglob("*"):
        os.utime(path, (1.5e9, 1.5e9))  # all of it older than what comes
    run(tmp_path, "another", published=False)
    assert find_garbage(Store.open(str(output))).paths == (), (
        "a run that was stopped goes on from what it did"
    )
    for path in files(output) - kept:
        os.utime(output / path, (1.2e9, 1.2e9))
    found = find_garbage(Store.open(str(output)))
    assert (found.shards, found.runs_kept) == (3, 1)
    assert set(found.paths) == files(output) - kept
    assert found.bytes == sum((output / path).stat().st_size for path in found.paths)
    assert [path.split("/")[0] for path in found.paths] == ["receipts"] * 3 + ["masks"] * 3 + [
        "rejects"
    ] * 3
    remove_files(Store.open(str(output)), found.files, lambda: None)
    assert files(output) == kept
    assert verify_output(Store.open(str(output))).holds


def test_runs_beyond_the_newest_are_garbage_with_the_files_they_alone_name(tmp_path: Path) -> None:
    run(tmp_path)
    output = Path(run(tmp_path, "another").output)
    assert find_garbage(Store.open(str(output))).paths == (), (
        "old parts stay readable as long as their run is published"
    )
    found = find_garbage(Store.open(str(output)), keep_runs=1)
    remove_files(Store.open(str(output)), found.files, lambda: None)
    (left,) = status(Store.open(str(output))).runs
    assert left.model_revision == "another"
    assert verify_output(Store.open(str(output))).holds
    assert sorted(path.split("/")[0] for path in files(output)) == sorted(
        ["runs", "indexes", "manifests", *["receipts", "masks", "rejects"] * 3]
    )


def test_an_output_without_published_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="all would go"):
        find_garbage(Store.open(run(tmp_path, published=False).output))
