"""Which workers are started and what they are told, and what is said when there are none."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import psutil
import pytest
import torch
from distributed import Client, Future, KilledWorker, LocalCluster, get_worker

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of
from tests.support.tables import png, write_input
from wordmask.flows.execution import bisect, cluster, dispatcher, futures
from wordmask.flows.execution.bisect import find_poison_rows
from wordmask.flows.execution.calibrate import calibrate
from wordmask.flows.execution.cluster import (
    ClusterError,
    open_cluster,
    shard_resources,
    worker_count,
    worker_model,
)
from wordmask.flows.execution.dispatcher import Dispatcher, StoreGoneError
from wordmask.flows.execution.futures import WorkerPool
from wordmask.schemas.runs import Plan, Receipt, RowRange, Shard, ShardHints
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.output.catalog import status
from wordmask.tasks.shard import run_shard
from wordmask.tasks.storage import Store
from wordmask.tasks.worker import BrokenDeviceError, UnhealthyWorkerError, context_of, resident_name

FAKE = "tests.support.fakes:FakeSegmenter"


def settings(device: str | None = None, **options: Any) -> RunSettings:
    return RunSettings.model_validate(
        {"input": "in", "output": "out", "model": {"device": device}} | options
    )


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(cluster, "_cores", lambda: 16)


@pytest.fixture
def dask_cuda(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for dask-cuda; what its cluster was asked for."""
    asked: list[dict[str, Any]] = []
    module = types.ModuleType("dask_cuda")
    module.__spec__ = importlib.machinery.ModuleSpec("dask_cuda", None)
    module.LocalCUDACluster = lambda **options: asked.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    return asked


def test_one_worker_per_core_with_a_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(cluster, "_cores", lambda: 6)
    assert (worker_count(settings()), cluster._threads(settings())) == (6, 1)
    assert (worker_count(settings(workers=2)), cluster._threads(settings(workers=2))) == (2, 3)
    assert cluster._threads(settings(workers=12)) == 1
    assert cluster._threads(settings(scheduler="tcp://a:1")) is None, (
        "a standing cluster's threads are its owner's"
    )


@pytest.mark.usefixtures("four_gpus")
def test_one_worker_per_gpu() -> None:
    assert [worker_count(settings(device)) for device in (None, "cuda", "cuda:2", "cpu")] == [
        4,
        4,
        1,
        16,
    ]
    assert cluster._threads(settings()) == 4


@pytest.mark.usefixtures("four_gpus")
def test_dask_cuda_is_used_where_it_can_be(dask_cuda: list[dict[str, Any]]) -> None:
    cluster._local_cluster(settings())
    (options,) = dask_cuda
    assert (options["n_workers"], options["resources"], options["host"]) == (
        4,
        {"GPU": 1},
        "127.0.0.1",
    )
    assert worker_model(settings()).device == "cuda:0", (
        "dask-cuda makes each worker's own GPU its first"
    )
    for other in (
        settings("cuda:2"),
        settings("cpu"),
        settings(workers=8),
        settings(scheduler="tcp://a:1"),
    ):
        assert worker_model(other) == other.model


@pytest.mark.skipif(
    importlib.util.find_spec("dask_cuda") is not None, reason="dask-cuda is installed"
)
@pytest.mark.usefixtures("four_gpus")
def test_without_dask_cuda_workers_find_their_gpu_by_number() -> None:
    assert worker_model(settings()).device is None


@pytest.mark.usefixtures("prefect_api")
def test_dask_and_prefect_listen_on_this_machine_alone() -> None:
    with cluster._local_cluster(settings(workers=1)):
        everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [
            at.laddr.ip
            for each in everyone
            for at in each.net_connections()
            if at.status == psutil.CONN_LISTEN
        ]
    assert len(listening) >= 5, "Prefect's server, scheduler, its status page, nanny, worker"
    assert set(listening) == {"127.0.0.1"}


@pytest.fixture
def standing() -> Iterator[LocalCluster]:
    """A cluster within this process, whose worker offers a GPU."""
    options = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": None,
        "resources": {"GPU": 1},
    }
    with LocalCluster(**options) as local:
        yield local


def test_a_shard_takes_half_a_gpu_where_all_workers_offer_one(standing: LocalCluster) -> None:
    with Client(standing) as client:
        assert shard_resources(client) == {"GPU": 0.5}
        standing.scale(0)
        client.sync(standing._correct_state)
        assert shard_resources(client) == {}


def test_a_worker_that_lacks_the_package_is_named(standing: LocalCluster) -> None:
    with (
        pytest.raises(
            ClusterError, match="cannot import nowhere: install wordmask on every worker"
        ),
        open_cluster(settings(scheduler=standing.scheduler_address), REVISION, "nowhere:Segmenter"),
    ):
        pass
    with open_cluster(
        settings(scheduler=standing.scheduler_address), REVISION, FAKE
    ) as client:  # the failure is not kept
        name = resident_name(REVISION, SegmentSettings())
        loaded = client.run(
            lambda dask_worker: type(context_of(dask_worker.plugins, name).segmenter).__name__
        )
    assert set(loaded.values()) == {"FakeSegmenter"}


def test_a_scheduler_without_workers_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty:
        address = empty.scheduler_address
        with (
            pytest.raises(ClusterError, match=f"has no workers.*dask worker {address}"),
            open_cluster(settings(scheduler=address), REVISION, FAKE),
        ):
            pass


def test_no_scheduler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with (
            pytest.raises(ClusterError, match=f"{address}: no Dask scheduler answers"),
            open_cluster(settings(scheduler=address), REVISION, FAKE),
        ):
            pass


@pytest.fixture
def nine_shards(tmp_path: Path, standing: LocalCluster) -> tuple[RunSettings, Plan]:
    write_input(
        tmp_path / "in.parquet", [{"image": png(i), "query": f"thing {i}"} for i in range(9)]
    )
    asked = settings(
        input=str(tmp_path / "in.parquet"),
        output=str(tmp_path / "out"),
        shard_rows=1,
        scheduler=standing.scheduler_address,
    )
    return asked, plan_of(asked, FakeSegmenter("demo").revision)


def failing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, shards: Sequence[Shard], asked: RunSettings
) -> Callable[[], list[str]]:
    """Let the store fail for some shards. Gives what tells the ids of all that were tried: in a
    file, as Dask copies what it is given.
    """
    diary = Path(asked.output).with_name("tried.txt")
    ids = {shard.shard_id for shard in shards}

    def process(shard: Shard, *args: Any, **options: Any) -> Receipt:
        with diary.open("a") as file:
            file.write(f"{shard.shard_id}\n")
        if shard.shard_id in ids:
            raise error
        return run_shard(shard, *args, **options)

    monkeypatch.setattr(dispatcher, "run_shard", process)
    return lambda: diary.read_text().split()


def test_a_store_that_is_gone_ends_the_run_before_every_shard_is_tried(
    nine_shards: tuple[RunSettings, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    tried = failing(monkeypatch, ConnectionError("nobody there"), plan.shards, asked)
    with (
        pytest.raises(
            StoreGoneError,
            match=r"failed 4 shards.*ConnectionError: nobody there.*takes up the rest",
        ),
        open_cluster(asked, plan.shards[0].model_revision, FAKE) as client,
    ):
        Dispatcher(client, asked, lambda _: None).run(plan.pending)
    assert 0 < len(set(tried())) < 9


@pytest.mark.parametrize(
    ("error", "times"), [(ConnectionError("reset"), 4), (FileNotFoundError("gone"), 1)]
)
def test_one_shard_that_the_store_fails_is_given_up_alone(
    error: Exception,
    times: int,
    nine_shards: tuple[RunSettings, Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, plan = nine_shards
    tried = failing(monkeypatch, error, plan.shards[:1], asked)
    receipts: list[Receipt] = []
    with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
        outcome = Dispatcher(client, asked, receipts.append).run(plan.pending)
    assert [shard for shard, _ in outcome.failures] == [plan.shards[0]]
    assert len(receipts) == 8
    assert tried().count(plan.shards[0].shard_id) == times, (
        "a file that is not there is not asked for again"
    )


def test_rows_that_kill_are_looked_for_after_a_single_retry(
    nine_shards: tuple[RunSettings, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    asked, bad, gone = (
        asked.model_copy(update={"retries": 1}),
        plan.shards[0].shard_id,
        types.SimpleNamespace(address="gone"),
    )

    def process(shard: Shard, *args: Any, hints: ShardHints, **options: Any) -> Receipt:
        if shard.shard_id == bad and not hints.poison_rows:
            raise KilledWorker(bad, gone, 0)
        return run_shard(shard, *args, hints=hints, **options)

    def try_rows(shard: Shard, _: RunSettings, start: int, stop: int) -> None:
        if start < stop:
            raise KilledWorker(shard.shard_id, gone, 0)

    monkeypatch.setattr(dispatcher, "run_shard", process)
    monkeypatch.setattr(bisect, "try_rows", try_rows)
    receipts: list[Receipt] = []
    with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
        assert Dispatcher(client, asked, receipts.append).run(plan.pending).failures == []
    assert [receipt.rejects for receipt in receipts] == [{}] * 8 + [{"worker_killed": 1}]


def test_a_scheduler_that_goes_away_ends_the_run_rather_than_hangs_it(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    receipts: list[Receipt] = []

    def lose_it(receipt: Receipt) -> None:
        receipts.append(receipt)
        standing.close()

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(ClusterError, match=r"the Dask scheduler went away.*takes up the rest"),
        open_cluster(asked, plan.shards[0].model_revision, FAKE) as client,
    ):
        Dispatcher(client, asked, lose_it).run(plan.pending)
    assert 0 < len(receipts) < 9


def test_a_scheduler_that_forgot_a_task_ends_the_run_even_if_it_is_there_again(
    standing: LocalCluster,
) -> None:
    with Client(standing.scheduler_address) as client:
        workers = WorkerPool(client)
        workers.submit("forgotten", abs, -1)
        client.cancel([Future("forgotten-0", client)])  # as its first try is named
        with pytest.raises(ClusterError, match="the Dask scheduler went away"):
            workers.next_finished()


def test_a_cluster_that_stays_without_workers_ends_the_run_rather_than_hangs_it(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    receipts: list[Receipt] = []

    def lose_all(receipt: Receipt) -> None:
        receipts.append(receipt)
        standing.scale(0)

    monkeypatch.setattr(futures, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(futures, "NO_WORKER_SECONDS", 1)
    with (
        pytest.raises(
            ClusterError, match=r"no worker is left.*none came back within 1 s.*takes up the rest"
        ),
        open_cluster(asked, plan.shards[0].model_revision, FAKE) as client,
    ):
        Dispatcher(client, asked, lose_all).run(plan.pending)
    assert 0 < len(receipts) < 9


def breaking(
    monkeypatch: pytest.MonkeyPatch,
    error: type[UnhealthyWorkerError],
    unfit: Sequence[str],
    at: Sequence[Shard] = (),
) -> None:
    """Let some workers fail whatever they are given, or all of them some shards."""
    ids = {shard.shard_id for shard in at}

    def process(shard: Shard, *args: Any, **options: Any) -> Receipt:
        address = get_worker().address
        if address in unfit or shard.shard_id in ids:
            raise error("device lost", address)
        return run_shard(shard, *args, **options)

    monkeypatch.setattr(dispatcher, "run_shard", process)


def test_an_unfit_worker_gets_no_more_shards_and_costs_none_an_attempt(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    asked = asked.model_copy(update={"retries": 0})
    breaking(
        monkeypatch, BrokenDeviceError, [worker.address for worker in standing.workers.values()]
    )
    standing.scale(2)
    receipts: list[Receipt] = []
    with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
        client.wait_for_workers(2)
        assert Dispatcher(client, asked, receipts.append).run(plan.pending).failures == []
    assert {receipt.shard.shard_id for receipt in receipts} == {
        shard.shard_id for shard in plan.shards
    }


def test_a_cluster_without_a_fit_worker_ends_the_run(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    (unfit,) = [worker.address for worker in standing.workers.values()]
    breaking(monkeypatch, UnhealthyWorkerError, [unfit])
    with (
        pytest.raises(
            ClusterError,
            match=rf"no fit worker is left: worker {unfit}: device lost\..*takes up the rest",
        ),
        open_cluster(asked, plan.shards[0].model_revision, FAKE) as client,
    ):
        Dispatcher(client, asked, lambda _: None).run(plan.pending)


def test_a_shard_that_breaks_devices_is_given_up_before_it_breaks_them_all(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    breaking(monkeypatch, BrokenDeviceError, [], plan.shards[:1])
    standing.scale(3)
    receipts: list[Receipt] = []
    with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
        client.wait_for_workers(3)
        outcome = Dispatcher(client, asked, receipts.append).run(plan.pending)
    assert [shard for shard, _ in outcome.failures] == [plan.shards[0]]
    assert len(receipts) == 8


def test_what_waits_for_fit_workers_that_went_away_is_given_to_those_that_came(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plan = nine_shards
    breaking(
        monkeypatch, UnhealthyWorkerError, [worker.address for worker in standing.workers.values()]
    )
    monkeypatch.setattr(futures, "CHECK_SECONDS", 0.1)
    standing.scale(2)
    receipts: list[Receipt] = []

    def replace_the_fit_one(receipt: Receipt) -> None:
        receipts.append(receipt)
        if len(receipts) == 3:
            standing.sync(standing.workers[1].close)
            del standing.workers[1], standing.worker_spec[1]
            Thread(target=standing.scale, args=(2,)).start()

    with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
        client.wait_for_workers(2)
        outcome = Dispatcher(client, asked, replace_the_fit_one).run(plan.pending)
    assert outcome.failures == []
    assert {receipt.shard.shard_id for receipt in receipts} == {
        shard.shard_id for shard in plan.shards
    }


@pytest.mark.timeout(900)  # workers start twice, which takes minutes where others have the machine
def test_workers_that_dask_gave_up_are_replaced_where_the_cluster_is_ours(
    nine_shards: tuple[RunSettings, Plan],
) -> None:
    asked, plan = nine_shards
    asked = asked.model_copy(update={"scheduler": None, "workers": 1})
    receipts: list[Receipt] = []
    with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
        (given_up,) = client.cluster.workers.values()

        def give_up(receipt: Receipt) -> None:
            receipts.append(receipt)
            client.cluster.sync(given_up.close)

        outcome = Dispatcher(client, asked, give_up).run(plan.pending)
    assert outcome.failures == []
    assert {receipt.shard.shard_id for receipt in receipts} == {
        shard.shard_id for shard in plan.shards
    }


def test_a_worker_that_is_long_in_coming_back_is_waited_for() -> None:
    """Dask itself closes it after a timeout. With one of no seconds, each would be closed."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "0 s"}),
        open_cluster(settings(workers=1), REVISION, FAKE) as client,
    ):
        (nanny,) = client.cluster.workers.values()
        stopped = nanny.process.stopped
        psutil.Process(nanny.pid).kill()
        client.cluster.sync(stopped.wait)
        client.wait_for_workers(1, timeout=200)
        assert client.cluster.workers == {0: nanny}


class Deadly:
    """A worker pool in which whoever works on rows with these numbers dies; -1: on no row too."""

    def __init__(self, deadly: set[int]) -> None:
        self._deadly = deadly
        self._range = (0, 0)

    def submit(
        self, _key: str, _try: Any, _shard: Shard, _settings: RunSettings, start: int, stop: int
    ) -> None:
        self._range = (start, stop)

    def next_finished(self) -> tuple[str, Any]:
        dies = -1 in self._deadly or self._deadly & {*range(*self._range)}
        return "try", KilledWorker("try", None, 0) if dies else None


def test_rows_are_not_blamed_where_workers_die_without_any(
    nine_shards: tuple[RunSettings, Plan],
) -> None:
    asked, plan = nine_shards
    shard = plan.shards[0].model_copy(update={"ranges": (RowRange(0, 0, 9),)})
    assert find_poison_rows(Deadly({2, 7}), shard, asked) == (2, 7)  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="workers die even with no row"):
        find_poison_rows(Deadly({-1}), shard, asked)  # type: ignore[arg-type]


def test_calibrating_does_a_few_shards_and_publishes_nothing(
    tmp_path: Path, standing: LocalCluster
) -> None:
    write_input(
        tmp_path / "in.parquet", [{"image": png(i), "query": f"thing {i}"} for i in range(9)]
    )
    asked = settings(
        input=str(tmp_path / "in.parquet"),
        output=str(tmp_path / "out"),
        shard_rows=1,
        scheduler=standing.scheduler_address,
    )
    revision = FakeSegmenter("demo").revision
    receipts, workers = calibrate(plan_of(asked, revision), asked, FAKE)
    assert (len(receipts), workers) == (3, len(standing.workers))
    assert plan_of(asked, revision).done == {receipt.shard.shard_id for receipt in receipts}
    found = status(Store.open(asked.output))
    assert (found.runs, found.unpublished) == ((), 3)
    assert not (tmp_path / "out/lease.json").exists(), "a run may begin"


def test_calibrating_says_which_shard_failed(tmp_path: Path, standing: LocalCluster) -> None:
    write_input(tmp_path / "in.parquet", [{"image": png(0), "query": "out of memory"}])
    asked = settings(
        input=str(tmp_path / "in.parquet"),
        output=str(tmp_path / "out"),
        retries=0,
        scheduler=standing.scheduler_address,
    )
    with pytest.raises(
        RuntimeError, match=r"--calibrate: in\.parquet rows 0-0 failed: MemoryError"
    ):
        calibrate(plan_of(asked, FakeSegmenter("demo").revision), asked, FAKE)
