"""What no run names goes in two phases, and a process that stood still removes nothing new."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import GOOD, plan_of, publish_run, settings_for
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output import garbage
from wordmask.tasks.output.garbage import Collected, collect_garbage, find_garbage, name_garbage
from wordmask.tasks.output.lease import LeaseLostError, acquire_lease
from wordmask.tasks.output.manifests import write_manifests
from wordmask.tasks.output.verify import verify, verify_output
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store


def publish_with(settings: RunSettings, revision: str) -> None:
    """Publish a run with a model of this revision, which takes up what is done."""
    with acquire_lease(Store.open(settings.output)) as lease:
        plan = plan_of(settings, revision).model_copy(update={"fence": lease.fence})
        model = FakeSegmenter()
        model.revision = revision
        for shard in plan.pending:
            process_shard(shard, settings, ShardContext(model), fence=lease.fence)
        publish_run(plan, settings)


@pytest.fixture(autouse=True)
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each collection come late enough after the one before."""
    monkeypatch.setattr(garbage, "NAMED_FOR", timedelta(0))


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    """Of an output with a run of three shards, and a newer run with another model."""
    rows = [GOOD | {"query": f"thing {number}"} for number in range(3)]
    settings = settings_for(tmp_path, rows, shard_rows=1)
    publish_with(settings, REVISION)
    publish_with(settings, "another")
    return settings


def collect(output: Store, keep_runs: int | None = 1) -> Collected:
    with acquire_lease(output, "gc") as lease:
        return collect_garbage(output, lease, keep_runs)


def test_a_nightly_collection_removes_what_the_one_before_named(settings: RunSettings) -> None:
    output = Store.open(settings.output)
    first = collect(output)
    assert first.removed.paths == ()
    assert (first.named.shards, first.named.runs_kept) == (3, 1)
    second = collect(output)
    assert second.removed.paths == first.named.paths
    assert second.named.paths == find_garbage(output, 1).paths == ()
    assert collect(output).removed.paths == ()
    assert verify_output(output).holds


def test_a_run_neither_takes_up_nor_writes_again_what_was_named(settings: RunSettings) -> None:
    """As a process that stood still between its look and the removal may still remove it."""
    output = Store.open(settings.output)
    named = name_garbage(output, keep_runs=1).named
    publish_with(settings, REVISION)
    assert named.shards == 3
    garbage.remove_files(output, named.files, lambda: None)
    assert verify_output(output).holds


def test_what_a_run_at_work_has_written_is_not_named(settings: RunSettings) -> None:
    output = Store.open(settings.output)
    with acquire_lease(output) as lease:
        plan = plan_of(settings, "a third").model_copy(update={"fence": lease.fence})
        model = FakeSegmenter()
        model.revision = "a third"
        for shard in plan.pending:
            process_shard(shard, settings, ShardContext(model), fence=lease.fence)
        write_manifests(output, verify(plan, output).files, lease.fence)
        assert find_garbage(output).paths == ()


def test_a_file_goes_an_hour_after_it_was_named(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    output = Store.open(settings.output)
    named = collect(output).named
    again = collect(output)
    assert (again.removed.paths, again.named.paths) == ((), named.paths)


def test_a_collection_that_lost_the_output_stops_before_its_next_request(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "REMOVED_AT_ONCE", 2)
    output = Store.open(settings.output)
    named = name_garbage(output, keep_runs=1).named.paths
    with acquire_lease(output, "gc") as lease:
        require, asked = lease.require, []

        def lose_it_at_the_fifth() -> None:
            asked.append(None)
            if len(asked) == 5:
                output.remove(f"leases/{lease.fence:010}.json")
            require()

        monkeypatch.setattr(lease, "require", lose_it_at_the_fifth)
        with pytest.raises(LeaseLostError):
            collect_garbage(output, lease, keep_runs=1)
    left = [path for path in named if Path(output.full(path)).exists()]
    assert tuple(left) == named[5:], "head, index, manifest and two of three receipts went"
    assert verify_output(output).holds


def test_a_file_that_was_written_again_since_it_was_named_stays(settings: RunSettings) -> None:
    output = Store.open(settings.output)
    again, *others = reversed(name_garbage(output, keep_runs=1).named.paths)
    os.utime(output.full(again))
    collected = collect(output)
    assert set(collected.removed.paths) == set(others)
    assert collected.named.paths == (again,)


def test_what_is_named_says_since_when_and_after_which_lease(settings: RunSettings) -> None:
    output = Store.open(settings.output)
    with acquire_lease(output, "a run"):
        pass
    name_garbage(output, keep_runs=1)
    (first, *_) = found = pq.read_table(output.full("garbage/named.parquet")).to_pylist()
    assert first["fence"] == 3
    assert first["named_at"]
    with acquire_lease(output, "another run"):
        pass
    name_garbage(output, keep_runs=1)
    assert pq.read_table(output.full("garbage/named.parquet")).to_pylist() == found


def test_an_output_without_garbage_is_not_written(settings: RunSettings) -> None:
    output = Store.open(settings.output)
    assert name_garbage(output).named.paths == ()
    assert not Path(output.root, "garbage").exists()


def test_garbage_in_object_storage_goes_in_a_few_requests(
    settings: RunSettings, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Store.open(f"{s3}/{uuid4().hex}")
    settings = settings.model_copy(update={"output": f"s3://{lake.root}"})
    publish_with(settings, REVISION)
    publish_with(settings, "another")
    output = Store.open(settings.output)
    named = name_garbage(output, keep_runs=1).named.paths
    with acquire_lease(output, "gc") as lease, monkeypatch.context() as patch:
        patch.setattr(Store, "remove", lambda *_: pytest.fail("removed one by one"))
        assert collect_garbage(output, lease, keep_runs=1).removed.paths == named
    assert find_garbage(output, keep_runs=1).paths == ()
    assert verify_output(output).holds
