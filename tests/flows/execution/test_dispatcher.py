"""What becomes of a run's shards when stores fail and workers die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import KilledWorker

from tests.support.fakes import FACTORY
from wordmask.flows.execution import bisect, dispatcher
from wordmask.flows.execution.budget import Budget
from wordmask.flows.execution.cluster import open_cluster
from wordmask.flows.execution.dispatcher import Dispatcher, StoreGoneError
from wordmask.schemas.runs import Plan, Receipt, Shard, ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.lease import LeaseLostError
from wordmask.tasks.shard import run_shard

NineShards = tuple[RunSettings, Plan]


def fail_shards(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    shards: Sequence[Shard],
    settings: RunSettings,
) -> Callable[[], list[str]]:
    """Let the store fail for some shards, and return a function for the ids of all that were tried.

    They are kept in a file, as Dask copies what it is given.
    """
    log = Path(settings.output).with_name("tried.txt")
    failing = {shard.shard_id for shard in shards}

    def run_or_fail(shard: Shard, *args: Any, **options: Any) -> Receipt:
        with log.open("a") as file:
            file.write(f"{shard.shard_id}\n")
        if shard.shard_id in failing:
            raise error
        return run_shard(shard, *args, **options)

    monkeypatch.setattr(dispatcher, "run_shard", run_or_fail)
    return lambda: log.read_text().split()


def test_a_lease_that_is_lost_ends_the_run_between_shards(
    nine_shards: NineShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it waits for a shard: the check raises at any look."""
    settings, plan = nine_shards
    tried = fail_shards(monkeypatch, RuntimeError(), (), settings)
    receipts: list[Receipt] = []

    def check() -> None:
        if receipts:
            raise LeaseLostError("taken over")

    with (
        pytest.raises(LeaseLostError, match="taken over"),
        open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client,
    ):
        Dispatcher(client, settings, receipts.append, check=check).run(plan.pending)
    assert (len(receipts), len(set(tried())) < 9) == (1, True)


def test_a_store_that_is_gone_ends_the_run_before_every_shard_is_tried(
    nine_shards: NineShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    tried = fail_shards(monkeypatch, ConnectionError("nobody there"), plan.shards, settings)
    message = r"failed 4 shards.*ConnectionError: nobody there.*takes up the rest"
    with (
        pytest.raises(StoreGoneError, match=message),
        open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client,
    ):
        Dispatcher(client, settings, lambda _: None).run(plan.pending)
    assert 0 < len(set(tried())) < 9


@pytest.mark.parametrize(
    ("error", "times"), [(ConnectionError("reset"), 4), (FileNotFoundError("gone"), 1)]
)
def test_one_shard_that_the_store_fails_is_given_up_alone(
    error: Exception, times: int, nine_shards: NineShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    tried = fail_shards(monkeypatch, error, plan.shards[:1], settings)
    receipts: list[Receipt] = []
    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        outcome = Dispatcher(client, settings, receipts.append).run(plan.pending)
    assert [shard for shard, _ in outcome.failures] == [plan.shards[0]]
    assert len(receipts) == 8
    assert tried().count(plan.shards[0].shard_id) == times, "a missing file is asked for once"


def test_rows_that_kill_are_looked_for_after_a_single_retry(
    nine_shards: NineShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    settings = settings.model_copy(update={"retries": 1})
    deadly = plan.shards[0].shard_id
    dead_worker = SimpleNamespace(address="gone")

    def run_or_die(shard: Shard, *args: Any, hints: ShardHints, **options: Any) -> Receipt:
        if shard.shard_id == deadly and not hints.poison_rows:
            raise KilledWorker(deadly, dead_worker, 0)
        return run_shard(shard, *args, hints=hints, **options)

    def try_rows(shard: Shard, _: RunSettings, start: int, stop: int) -> None:
        if start < stop:
            raise KilledWorker(shard.shard_id, dead_worker, 0)

    monkeypatch.setattr(dispatcher, "run_shard", run_or_die)
    monkeypatch.setattr(bisect, "try_rows", try_rows)
    receipts: list[Receipt] = []
    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        outcome = Dispatcher(client, settings, receipts.append).run(plan.pending)
    assert outcome.failures == []
    assert [receipt.rejects for receipt in receipts] == [{}] * 8 + [{"worker_killed": 1}]


def test_shards_under_which_workers_died_are_left_when_the_budget_is_spent(
    nine_shards: NineShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    settings = settings.model_copy(update={"budget_seconds": 3600.0})
    deadly = plan.shards[0]
    dead_worker = SimpleNamespace(address="gone")

    def run_or_die(shard: Shard, *args: Any, **options: Any) -> Receipt:
        if shard.shard_id == deadly.shard_id:
            raise KilledWorker(shard.shard_id, dead_worker, 0)
        return run_shard(shard, *args, **options)

    monkeypatch.setattr(dispatcher, "run_shard", run_or_die)
    receipts: list[Receipt] = []

    def spend_all(receipt: Receipt) -> None:
        receipts.append(receipt)
        if len(receipts) == 8:
            monkeypatch.setattr(Budget, "allows_another", False)

    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        outcome = Dispatcher(client, settings, spend_all).run(plan.pending)
    assert (outcome.failures, outcome.left) == ([], [deadly])
