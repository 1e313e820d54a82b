"""The flow over real Dask workers with a fake model: deaths, resumption, always the same bytes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from distributed import LocalCluster
from prefect.artifacts import Artifact

from tests.support.fakes import FACTORY
from tests.support.tables import png, read_rows, write_input
from wordmask.flows import reporting
from wordmask.flows import segment as segment_module
from wordmask.flows.cli.runs import _show_run
from wordmask.flows.execution.budget import Budget
from wordmask.flows.execution.rounds import ShardsFailedError
from wordmask.flows.reporting import OnProgress, Progress, ProgressReporter, ignore_progress
from wordmask.flows.segment import retry, segment, segment_flow
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import RunSummary, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks import shard as shard_module
from wordmask.tasks.output import lease as lease_module
from wordmask.tasks.output.catalog import lease_path, status
from wordmask.tasks.output.claims import Lease
from wordmask.tasks.output.lease import LeaseHandle, LeaseLostError, acquire_lease
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import DamagedInputError

pytestmark = pytest.mark.usefixtures("prefect_api")


def settings_for(tmp_path: Path, queries: list[str], **options: Any) -> RunSettings:
    rows = [
        {"row_id": f"r{i}", "image": png(i % 4), "query": query} for i, query in enumerate(queries)
    ]
    base = {
        "input": write_input(tmp_path / "in.parquet", rows),
        "output": str(tmp_path / "out"),
        "shard_rows": 3,
        "workers": 2,
    }
    return RunSettings.model_validate(base | options)


def run(settings: RunSettings, on_progress: OnProgress = ignore_progress) -> RunSummary:
    return segment_flow(on_progress)(settings, factory=FACTORY)


def row_counts(output: str) -> Counter[str]:
    rows = [*read_rows(output, "masks"), *read_rows(output, "rejects")]
    return Counter(row["row_id"] for row in rows)


def part_bytes(output: str, kind: str) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in Path(output, kind).iterdir()}


class Killed(NamedTuple):
    """A run of 14 rows, one of them empty, in which a worker died once.

    `artifacts`: those that it left with Prefect, by key.
    """

    settings: RunSettings
    summary: RunSummary
    artifacts: dict[str, Artifact | None]


@pytest.fixture(scope="module")
def killed(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    queries = [f"thing {i}" for i in range(14)]
    queries[4] = f"die:{folder / 'died'}"
    queries[9] = ""
    settings = settings_for(folder, queries)
    summary = run(settings)
    assert (folder / "died").exists()
    keys = ("wordmask-progress", "wordmask-rows", "wordmask-run")
    return Killed(settings, summary, {key: Artifact.get(key) for key in keys})


def test_a_worker_killed_in_the_middle_of_a_shard_costs_nothing(killed: Killed) -> None:
    settings, summary, _ = killed
    assert (summary.rows, summary.masks, summary.shards) == (14, 13, 5)
    assert summary.rejects == {"empty_query": 1}
    assert row_counts(settings.output) == Counter({f"r{i}": 1 for i in range(14)})


def test_two_runs_from_scratch_write_the_same_bytes(killed: Killed, tmp_path: Path) -> None:
    again = killed.settings.model_copy(
        update={"output": str(tmp_path / "again"), "workers": 1, "batch_rows": 2}
    )
    run(again)
    for kind in ("masks", "rejects"):
        parts = part_bytes(killed.settings.output, kind)
        assert len(parts) == 5
        assert parts == part_bytes(again.output, kind)


def test_progress_and_results_are_artifacts(killed: Killed) -> None:
    artifacts = killed.artifacts
    assert all(artifacts.values())
    assert artifacts["wordmask-progress"].data == 100
    assert "14/14 rows" in artifacts["wordmask-progress"].description
    assert {"what": "rejected: empty_query", "rows": 1} in json.loads(
        artifacts["wordmask-rows"].data
    )
    assert killed.summary.run_id in artifacts["wordmask-run"].data


def test_given_up_shards_are_named_and_the_next_run_takes_them_up(tmp_path: Path) -> None:
    queries = [f"thing {i}" for i in range(6)]
    queries[5] = f"die:{tmp_path / 'died'}"
    settings = settings_for(tmp_path, queries, retries=0, workers=1)
    with pytest.raises(
        ShardsFailedError, match=r"of 2 shards failed(.|\n)*in\.parquet rows 3-5: KilledWorker"
    ):
        run(settings)
    assert status(Store.open(settings.output)).runs == (), "a failed run publishes nothing"
    summary = run(settings)
    assert (summary.rows, summary.masks) == (6, 6)
    assert row_counts(settings.output) == Counter({f"r{i}": 1 for i in range(6)})


def test_a_callback_for_progress_is_no_parameter_that_prefect_would_store() -> None:
    reporting_flow = segment_flow(lambda _: None)
    assert set(reporting_flow.parameters.properties) == {"settings", "factory"}
    assert reporting_flow.parameters == segment.parameters


def _content_of(path: str) -> str:
    """Return the hash in a record's name, which has the number of its run's lease before it."""
    return path.rpartition("-")[2]


def test_a_finished_run_is_not_done_again(killed: Killed) -> None:
    settings, first, _ = killed
    reported: list[int] = []
    second = run(settings, lambda progress: reported.append(progress.done))
    assert (first.shards_computed, second.shards_computed) == (5, 0)
    assert reported == [], "nothing was dispatched"
    assert (second.rows, second.rejects, _content_of(second.index)) == (
        first.rows,
        first.rejects,
        _content_of(first.index),
    )


@pytest.fixture
def standing() -> Generator[str]:
    """The scheduler of a worker within this process."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_a_run_that_waited_for_another_plans_only_then(
    tmp_path: Path, standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, ["a", "b", "c", "explode"], scheduler=standing)
    others: list[RunSummary] = []

    @contextmanager
    def waiting(output: Store, **options: Any) -> Generator[LeaseHandle]:
        monkeypatch.setattr(segment_module, "acquire_lease", acquire_lease)
        others.append(run(settings))
        with acquire_lease(output, **options) as lease:
            yield lease

    monkeypatch.setattr(segment_module, "acquire_lease", waiting)
    summary = run(settings)
    assert (others[0].shards_computed, summary.shards_computed) == (2, 0), (
        "the other had done it all"
    )
    monkeypatch.setattr(segment_module, "acquire_lease", waiting)
    again = retry(
        settings.output, (RejectCode.MODEL_ERROR,), scheduler=standing, wait=True, factory=FACTORY
    )
    found = [each.run_id for each in status(Store.open(settings.output)).runs]
    assert found == [again.run_id, others[1].run_id, summary.run_id, others[0].run_id], (
        "the newest is the one that was published last"
    )


def take_the_lease(output: str) -> None:
    other = Lease(
        token="t", run_id="other", fence=9, host="elsewhere", pid=7, since="s", renewed="r"
    )
    Store.open(output).write_bytes(lease_path(9), other.model_dump_json().encode())


def test_a_run_that_lost_the_output_publishes_nothing(tmp_path: Path, standing: str) -> None:
    settings = settings_for(tmp_path, ["a"], scheduler=standing)
    with pytest.raises(LeaseLostError, match=r"lost it to run other .*Nothing was published"):
        run(settings, lambda _: take_the_lease(settings.output))
    found = status(Store.open(settings.output))
    assert (found.runs, found.shards) == ((), 1)


def test_a_run_that_lost_the_output_dispatches_nothing_more(
    tmp_path: Path, standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.1)
    settings = settings_for(tmp_path, ["slowly"] * 12, scheduler=standing, shard_rows=1)
    with pytest.raises(LeaseLostError, match="lost it to run other"):
        run(settings, lambda _: take_the_lease(settings.output))
    assert status(Store.open(settings.output)).shards < 12


def test_an_output_that_cannot_be_written_is_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Store, "_put", denied)
    with pytest.raises(OSError, match=r"output .*out: cannot be written \(read-only file system\)"):
        run(settings_for(tmp_path, ["a"]))


# Ten workers die one after the other, and on a busy machine each takes half a minute to come back.
@pytest.mark.timeout(900)
def test_rows_that_kill_every_worker_are_rejected_and_their_neighbours_done(tmp_path: Path) -> None:
    queries = [f"thing {i}" for i in range(10)]
    queries[2] = queries[5] = "kill"
    settings = settings_for(tmp_path, queries, shard_rows=7)
    summary = run(settings)
    assert (summary.masks, summary.rejects) == (8, {"worker_killed": 2})
    assert [row["row_id"] for row in read_rows(settings.output, "rejects")] == ["r2", "r5"]
    assert row_counts(settings.output) == Counter({f"r{i}": 1 for i in range(10)})


def test_a_budget_ends_a_run_between_shards_and_the_next_one_goes_on(
    tmp_path: Path, standing: str
) -> None:
    settings = settings_for(tmp_path, ["a"] * 8, shard_rows=2, scheduler=standing)

    def spend_all(progress: Progress) -> None:
        if progress.computed:
            budget.setattr(Budget, "allows_another", False)

    with pytest.MonkeyPatch.context() as budget:
        first = run(settings, spend_all)
    assert 0 < first.rows < 8
    assert first.rows + first.rows_left == 8
    published = status(Store.open(settings.output)).runs
    assert published == (), "readers keep the results of the last whole run"
    second = run(settings)
    assert (second.rows, second.rows_left) == (8, 0)
    assert second.shards_computed == 4 - first.shards_computed
    assert row_counts(settings.output) == Counter({f"r{i}": 1 for i in range(8)})


def test_a_budget_counts_from_the_commands_start(tmp_path: Path, standing: str) -> None:
    settings = settings_for(tmp_path, ["a"], scheduler=standing, budget_seconds=3600.0)
    long_ago = time.monotonic() - 3601
    none = segment_flow(ignore_progress, long_ago)(settings, factory=FACTORY)
    assert (none.rows, none.rows_left, none.shards_computed) == (0, 1, 0)
    assert status(Store.open(settings.output)).runs == ()


def test_a_budget_keeps_the_time_of_the_last_verification_back(
    tmp_path: Path, standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, ["a"], scheduler=standing, budget_seconds=3600.0)
    first = run(settings)
    assert first.verify_seconds > 0
    slow = first.model_copy(update={"verify_seconds": 3600.0})
    monkeypatch.setattr(segment_module, "newest_run_if_any", lambda _: slow)
    write_input(Path(settings.input), [{"row_id": "r1", "image": png(), "query": "new"}])
    assert run(settings).rows_left == 1


def folder_for(tmp_path: Path, standing: str, **options: Any) -> RunSettings:
    """Write a table of the files a, b and c with one row each."""
    for name in "abc":
        write_words(tmp_path, name, "thing")
    folders = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    return RunSettings.model_validate(folders | {"scheduler": standing} | options)


def write_words(tmp_path: Path, name: str, words: str) -> None:
    rows = [{"row_id": name, "image": png(), "query": words}]
    write_input(tmp_path / "in" / f"{name}.parquet", rows)


def test_a_file_that_is_rewritten_during_a_run_is_in_it_as_it_is_then(
    tmp_path: Path, standing: str
) -> None:
    settings = folder_for(tmp_path, standing)

    def rewrite_once(progress: Progress) -> None:
        if progress.started is None:
            write_words(tmp_path, "c", "other words")

    summary = run(settings, rewrite_once)
    assert (summary.rows, summary.kept, summary.gaps) == (3, (), ())
    assert summary.shards_computed == 3
    words = {row["row_id"]: row["query"] for row in read_rows(settings.output, "masks")}
    assert words == {"a": "thing", "b": "thing", "c": "other words"}


def test_a_file_that_is_rewritten_all_the_time_stays_as_it_was_published(
    tmp_path: Path, standing: str
) -> None:
    settings = folder_for(tmp_path, standing)
    run(settings)
    write_words(tmp_path, "a", "other words")
    write_words(tmp_path, "c", "other words")

    def rewrite(_: Progress) -> None:
        write_words(tmp_path, "c", f"at {time.monotonic_ns()}")

    summary = run(settings, rewrite)
    assert (summary.rows, [file.name for file in summary.kept]) == (3, ["c.parquet"])
    words = {row["row_id"]: row["query"] for row in read_rows(settings.output, "masks")}
    assert words == {"a": "other words", "b": "thing", "c": "thing"}
    assert verify_output(Store.open(settings.output)).holds


def test_a_run_is_published_with_gaps_up_to_the_limit(
    tmp_path: Path, standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = folder_for(tmp_path, standing)
    real = shard_module.read_rows

    def read(table: Store, shard: Shard, *rest: Any) -> Any:
        if shard.name == "b.parquet":
            raise DamagedInputError("a page of b.parquet is damaged")
        return real(table, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "read_rows", read)
        with pytest.raises(ShardsFailedError, match=r"Nothing was published\. --max-gaps 1 would"):
            run(settings)
        assert status(Store.open(settings.output)).runs == ()
        summary = run(settings.model_copy(update={"max_gaps": 1}))
    assert (summary.rows, summary.rows_in_gaps) == (2, 1)
    assert str(summary.gaps[0]).startswith("b.parquet rows 0-0: DamagedInputError: a page of")
    with pytest.raises(SystemExit) as ended:
        _show_run(summary, json=True)
    assert ended.value.code == 3
    assert run(settings).rows == 3, "the next run fills the gap"


def test_rejected_rows_are_tried_again_alone(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, ["a", "explode", "", "d"], workers=1)
    first = run(settings)
    assert first.rejects == {"empty_query": 1, "model_error": 1}
    again = retry(settings.output, (RejectCode.MODEL_ERROR,), workers=1, factory=FACTORY)
    assert (again.rows, again.masks, again.shards_computed) == (4, 2, 1)
    assert again.rejects == first.rejects
    assert again.run_id > first.run_id
    assert row_counts(settings.output) == Counter({f"r{i}": 1 for i in range(4)})


def test_a_run_on_a_standing_cluster(tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs="CRITICAL",
    ) as cluster:
        settings = settings_for(tmp_path, ["a", "b", "c", "d"], scheduler=cluster.scheduler_address)
        assert run(settings).masks == 4


@pytest.mark.parametrize("part", ["create_progress_artifact", "update_progress_artifact"])
def test_a_run_goes_on_without_prefect(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("Prefect is away")

    monkeypatch.setattr(reporting, "ARTIFACT_SECONDS", -1.0)
    monkeypatch.setattr(reporting, "OUTAGE_SECONDS", -1.0)
    for name in ("create_progress_artifact", "update_progress_artifact"):
        function = away if name == part else lambda *_, **__: "id"
        monkeypatch.setattr(reporting, name, function)
    reported: list[int] = []
    receipt = SimpleNamespace(rows=1, rejected=0)
    reporter = ProgressReporter(Progress(rows=3), lambda progress: reported.append(progress.done))
    reporter.open()
    for _ in range(3):
        reporter.add(receipt)
    assert reported == [0, 1, 2, 3]
    assert [record.message for record in caplog.records if record.name == "wordmask"] == [
        "Prefect cannot be told"
    ]


def test_a_run_from_and_to_object_storage(tmp_path: Path, s3: str) -> None:
    local = settings_for(tmp_path, ["a", "b", "", "d"])
    Store.open(f"{s3}/flow").write_bytes("in.parquet", Path(local.input).read_bytes())
    summary = run(
        local.model_copy(update={"input": f"{s3}/flow/in.parquet", "output": f"{s3}/flow/out"})
    )
    assert (summary.masks, summary.rejects) == (3, {"empty_query": 1})
