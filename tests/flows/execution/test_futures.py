"""Workers that go away, come back, or are unhealthy, under a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, Future, LocalCluster, get_worker

from tests.support.fakes import FACTORY, REVISION, FakeSegmenter
from tests.support.rows import Answered, Asked
from wordmask.flows.execution import cluster, dispatcher, futures
from wordmask.flows.execution.cluster import ClusterError, open_cluster
from wordmask.flows.execution.dispatcher import Dispatcher
from wordmask.flows.execution.futures import WorkerPool
from wordmask.schemas.runs import Plan, Receipt, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.shard import run_shard
from wordmask.tasks.worker import BrokenDeviceError, UnhealthyWorkerError

NineShards = tuple[RunSettings, Plan]


def shard_ids(receipts: Sequence[Receipt]) -> set[str]:
    return {receipt.shard.shard_id for receipt in receipts}


def all_shard_ids(plan: Plan) -> set[str]:
    return {shard.shard_id for shard in plan.shards}


def addresses(standing: LocalCluster) -> list[str]:
    return [worker.address for worker in standing.workers.values()]


def fail_workers(
    monkeypatch: pytest.MonkeyPatch,
    error: type[UnhealthyWorkerError],
    unhealthy: Sequence[str] = (),
    shards: Sequence[Shard] = (),
) -> None:
    """Let some workers fail whatever they are given, or all workers some shards."""
    failing = {shard.shard_id for shard in shards}

    def run_or_fail(shard: Shard, *args: Any, **options: Any) -> Receipt:
        address = get_worker().address
        if address in unhealthy or shard.shard_id in failing:
            raise error("device lost", address)
        return run_shard(shard, *args, **options)

    monkeypatch.setattr(dispatcher, "run_shard", run_or_fail)


def test_a_scheduler_that_goes_away_ends_the_run_rather_than_hangs_it(
    nine_shards: NineShards, standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    receipts: list[Receipt] = []

    def close_scheduler(receipt: Receipt) -> None:
        receipts.append(receipt)
        standing.close()

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(ClusterError, match=r"the Dask scheduler went away.*takes up the rest"),
        open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client,
    ):
        Dispatcher(client, settings, close_scheduler).run(plan.pending)
    assert 0 < len(receipts) < 9


def test_a_scheduler_that_forgot_a_task_ends_the_run_even_if_it_is_there_again(
    standing: LocalCluster,
) -> None:
    with Client(standing.scheduler_address) as client:
        workers = WorkerPool(client)
        workers.submit("forgotten", abs, -1)
        client.cancel([Future("forgotten-0", client)])  # the key of its first attempt
        with pytest.raises(ClusterError, match="the Dask scheduler went away"):
            workers.next_finished()


def test_a_cluster_that_stays_without_workers_ends_the_run_rather_than_hangs_it(
    nine_shards: NineShards, standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    receipts: list[Receipt] = []

    def close_workers(receipt: Receipt) -> None:
        receipts.append(receipt)
        standing.scale(0)

    monkeypatch.setattr(futures, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(futures, "NO_WORKER_SECONDS", 1)
    message = r"no worker is left.*none came back within 1 s.*takes up the rest"
    with (
        pytest.raises(ClusterError, match=message),
        open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client,
    ):
        Dispatcher(client, settings, close_workers).run(plan.pending)
    assert 0 < len(receipts) < 9


def test_an_unhealthy_worker_gets_no_more_shards_and_costs_none_an_attempt(
    nine_shards: NineShards, standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    settings = settings.model_copy(update={"retries": 0})
    fail_workers(monkeypatch, BrokenDeviceError, addresses(standing))
    standing.scale(2)
    receipts: list[Receipt] = []
    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        client.wait_for_workers(2)
        outcome = Dispatcher(client, settings, receipts.append).run(plan.pending)
    assert outcome.failures == []
    assert shard_ids(receipts) == all_shard_ids(plan)


def test_a_cluster_without_a_healthy_worker_ends_the_run(
    nine_shards: NineShards, standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    (unhealthy,) = addresses(standing)
    fail_workers(monkeypatch, UnhealthyWorkerError, [unhealthy])
    message = rf"no fit worker is left: worker {unhealthy}: device lost\..*takes up the rest"
    with (
        pytest.raises(ClusterError, match=message),
        open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client,
    ):
        Dispatcher(client, settings, lambda _: None).run(plan.pending)


def test_a_shard_that_breaks_devices_is_given_up_before_it_breaks_them_all(
    nine_shards: NineShards, standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    fail_workers(monkeypatch, BrokenDeviceError, shards=plan.shards[:1])
    standing.scale(3)
    receipts: list[Receipt] = []
    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        client.wait_for_workers(3)
        outcome = Dispatcher(client, settings, receipts.append).run(plan.pending)
    assert [shard for shard, _ in outcome.failures] == [plan.shards[0]]
    assert len(receipts) == 8


def test_shards_of_healthy_workers_that_went_away_are_given_to_those_that_came(
    nine_shards: NineShards, standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    fail_workers(monkeypatch, UnhealthyWorkerError, addresses(standing))
    monkeypatch.setattr(futures, "CHECK_SECONDS", 0.1)
    standing.scale(2)
    receipts: list[Receipt] = []

    def replace_the_healthy_one(receipt: Receipt) -> None:
        receipts.append(receipt)
        if len(receipts) == 3:
            standing.sync(standing.workers[1].close)
            del standing.workers[1], standing.worker_spec[1]
            Thread(target=standing.scale, args=(2,)).start()

    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        client.wait_for_workers(2)
        outcome = Dispatcher(client, settings, replace_the_healthy_one).run(plan.pending)
    assert outcome.failures == []
    assert shard_ids(receipts) == all_shard_ids(plan)


class BrokenOnce(FakeSegmenter):
    """Of all that are made, the first raises on whatever it is asked."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(model, **settings)
        path = Path(os.environ["WORDMASK_TEST_MADE"])
        self.broken = not path.exists()
        path.touch()

    def stream(self, asked: Asked, rows: int) -> Answered:
        for image, queries in asked:
            if self.broken:
                raise ValueError("wrong kernel")
            yield from super().stream([(image, queries)], rows)


def test_a_model_broken_on_one_worker_of_two_costs_no_row(
    nine_shards: NineShards,
    standing: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, plan = nine_shards
    monkeypatch.setenv("WORDMASK_TEST_MADE", str(tmp_path / "made"))
    standing.scale(2)
    receipts: list[Receipt] = []
    unfit: dict[str, str] = {}
    with open_cluster(settings, plan.model_revision, f"{__name__}:BrokenOnce") as client:
        client.wait_for_workers(2)
        dispatcher = Dispatcher(client, settings, receipts.append)
        outcome = dispatcher.run(plan.pending, unfit.setdefault)
    assert outcome.failures == []
    assert shard_ids(receipts) == all_shard_ids(plan)
    assert [receipt.rejects for receipt in receipts] == [{}] * 9
    assert len(unfit) == 1
    assert "no row is to blame (ValueError: wrong kernel)" in next(iter(unfit.values()))


@pytest.mark.timeout(900)  # workers start twice, which takes minutes where others have the machine
def test_a_worker_of_our_own_whose_model_is_broken_is_restarted(
    nine_shards: NineShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plan = nine_shards
    settings = settings.model_copy(update={"scheduler": None, "workers": 1})
    monkeypatch.setenv("WORDMASK_TEST_MADE", str(tmp_path / "made"))
    monkeypatch.setattr(futures, "CHECK_SECONDS", 0.1)
    receipts: list[Receipt] = []
    with open_cluster(settings, plan.model_revision, f"{__name__}:BrokenOnce") as client:
        outcome = Dispatcher(client, settings, receipts.append).run(plan.pending)
    assert outcome.failures == []
    assert [receipt.rejects for receipt in receipts] == [{}] * 9


@pytest.mark.timeout(900)  # workers start twice, which takes minutes where others have the machine
def test_workers_that_dask_gave_up_are_replaced_where_the_cluster_is_ours(
    nine_shards: NineShards,
) -> None:
    settings, plan = nine_shards
    settings = settings.model_copy(update={"scheduler": None, "workers": 1})
    receipts: list[Receipt] = []
    with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
        (nanny,) = client.cluster.workers.values()

        def close_nanny(receipt: Receipt) -> None:
            receipts.append(receipt)
            client.cluster.sync(nanny.close)

        outcome = Dispatcher(client, settings, close_nanny).run(plan.pending)
    assert outcome.failures == []
    assert shard_ids(receipts) == all_shard_ids(plan)


def test_a_worker_that_is_long_in_coming_back_is_waited_for() -> None:
    """Dask itself closes it after a timeout. With one of no seconds, each would be closed."""
    settings = RunSettings(input="in", output="out", workers=1)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "0 s"}),
        open_cluster(settings, REVISION, FACTORY) as client,
    ):
        (nanny,) = client.cluster.workers.values()
        stopped = nanny.process.stopped
        psutil.Process(nanny.pid).kill()
        client.cluster.sync(stopped.wait)
        client.wait_for_workers(1, timeout=200)
        assert client.cluster.workers == {0: nanny}
