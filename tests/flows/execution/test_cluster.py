"""Workers that a run starts or finds, their settings, and errors where there are none."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from distributed import Client, LocalCluster, Worker

from tests.support.fakes import FACTORY, REVISION, FakeSegmenter
from wordmask.flows.execution import cluster
from wordmask.flows.execution.cluster import (
    ClusterError,
    open_cluster,
    shard_resources,
    worker_count,
)
from wordmask.flows.execution.dispatcher import Dispatcher
from wordmask.schemas.runs import Plan, Receipt
from wordmask.schemas.settings import ModelSettings, RunSettings, SegmentSettings
from wordmask.tasks.worker import context_of, resident_name


def settings(device: str | None = None, **options: Any) -> RunSettings:
    base = {"input": "in", "output": "out", "model": {"device": device}}
    return RunSettings.model_validate(base | options)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(cluster, "_cores", lambda: 16)


@pytest.fixture
def dask_cuda(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options of the clusters that a stand-in for dask-cuda was asked for."""
    clusters: list[dict[str, Any]] = []
    module = types.ModuleType("dask_cuda")
    module.__spec__ = importlib.machinery.ModuleSpec("dask_cuda", None)
    module.LocalCUDACluster = lambda **options: clusters.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    return clusters


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
    counts = {device: worker_count(settings(device)) for device in (None, "cuda", "cuda:2", "cpu")}
    assert counts == {None: 4, "cuda": 4, "cuda:2": 1, "cpu": 16}
    assert cluster._threads(settings()) == 4


@pytest.mark.usefixtures("four_gpus")
def test_dask_cuda_is_used_where_it_can_be(dask_cuda: list[dict[str, Any]]) -> None:
    cluster._local_cluster(settings())
    (options,) = dask_cuda
    assert options["n_workers"] == 4
    assert options["resources"] == {"GPU": 1}
    assert options["host"] == "127.0.0.1"


@pytest.mark.usefixtures("four_gpus", "dask_cuda")
@pytest.mark.parametrize(
    "options", [{"device": "cuda:2"}, {"device": "cpu"}, {"workers": 8}, {"scheduler": "tcp://a:1"}]
)
def test_dask_cuda_is_not_used_where_it_cannot_be(options: dict[str, Any]) -> None:
    assert not cluster._uses_dask_cuda(settings(**options))


@pytest.mark.usefixtures("prefect_api")
def test_dask_and_prefect_listen_on_this_machine_alone() -> None:
    with cluster._local_cluster(settings(workers=1)):
        this = psutil.Process()
        processes = [this, *this.children(recursive=True)]
        connections = [found for process in processes for found in process.net_connections()]
    listening = [found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN]
    assert len(listening) >= 5, "Prefect's server, scheduler, its status page, nanny, worker"
    assert set(listening) == {"127.0.0.1"}


def test_a_shard_takes_half_a_gpu_where_all_workers_offer_one(standing: LocalCluster) -> None:
    with Client(standing) as client:
        assert shard_resources(client) == {"GPU": 0.5}
        standing.scale(0)
        client.sync(standing._correct_state)
        assert shard_resources(client) == {}


def test_a_cluster_whose_workers_all_lack_the_package_is_a_clear_error(
    standing: LocalCluster,
) -> None:
    there = settings(scheduler=standing.scheduler_address)
    message = "no worker can load the model: worker .*'nowhere'.*install wordmask on every worker"
    with (
        pytest.raises(ClusterError, match=message),
        open_cluster(there, REVISION, "nowhere:Segmenter"),
    ):
        pass
    with open_cluster(there, REVISION, FACTORY) as client:  # the failure is not kept
        loaded = client.run(loaded_segmenter)
    assert set(loaded.values()) == {"FakeSegmenter"}


def loaded_segmenter(dask_worker: Worker) -> str:
    segment = SegmentSettings()
    name = resident_name(REVISION, ModelSettings(), segment)
    return type(context_of(dask_worker.plugins, name, segment).segmenter).__name__


@pytest.fixture
def four_loads(
    standing: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """A function that says for each load of a model on four workers whether it fails."""

    def plan_loads(*fails: bool) -> None:
        log = tmp_path / "loads.txt"
        log.write_text("\n".join("ECC error" if each else "fine" for each in fails))
        monkeypatch.setenv("WORDMASK_TEST_LOADS", str(log))
        standing.scale(4)
        with Client(standing) as client:
            client.wait_for_workers(4)

    return plan_loads


class Loads(FakeSegmenter):
    """Is loaded or not as the next line of a file says."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(model, **settings)
        path = Path(os.environ["WORDMASK_TEST_LOADS"])
        this, _, rest = path.read_text().partition("\n")
        path.write_text(rest)
        if this == "ECC error":
            raise RuntimeError(this)


LOADS = f"{__name__}:Loads"


@pytest.mark.parametrize(("again", "unfit"), [(True, 1), (False, 0)])
def test_one_worker_of_four_that_cannot_load_the_model_is_named_and_the_others_do_the_run(
    again: bool,
    unfit: int,
    four_loads: Callable[..., None],
    nine_shards: tuple[RunSettings, Plan],
) -> None:
    run, plan = nine_shards
    four_loads(False, True, False, False, again)
    named: dict[str, str] = {}
    receipts: list[Receipt] = []
    with open_cluster(run, plan.model_revision, LOADS, named.setdefault) as client:
        assert len(named) == unfit, "what failed is tried once more"
        dispatcher = Dispatcher(client, run, receipts.append)
        outcome = dispatcher.run(plan.pending, named.setdefault)
    assert (outcome.failures, len(receipts), len(named)) == ([], 9, unfit)
    assert all("RuntimeError: ECC error" in reason for reason in named.values())


def test_a_cluster_of_which_no_worker_can_load_the_model_says_why_for_each(
    four_loads: Callable[..., None], nine_shards: tuple[RunSettings, Plan]
) -> None:
    run, plan = nine_shards
    four_loads(*[True] * 8)
    with (
        pytest.raises(ClusterError, match="no worker can load the model") as caught,
        open_cluster(run, plan.model_revision, LOADS),
    ):
        pass
    assert str(caught.value).count("could not load the model: RuntimeError: ECC error") == 4


def test_a_scheduler_without_workers_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty:
        address = empty.scheduler_address
        with (
            pytest.raises(ClusterError, match=f"has no workers.*dask worker {address}"),
            open_cluster(settings(scheduler=address), REVISION, FACTORY),
        ):
            pass


def test_no_scheduler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with (
            pytest.raises(ClusterError, match=f"{address}: no Dask scheduler answers"),
            open_cluster(settings(scheduler=address), REVISION, FACTORY),
        ):
            pass
