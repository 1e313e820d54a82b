"""Workers for a run: started on this machine, or a standing Dask cluster. Bound to localhost unless
told otherwise.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import dask
import torch
from distributed import Client, LocalCluster, Status

from wordmask.flows.execution.signals import held_back
from wordmask.schemas.settings import ModelSettings, RunSettings
from wordmask.tasks.worker import SEGMENTER, ResidentModel

CONNECT_SECONDS = 20
# at a time: one has the model, one reads or writes. Dask blames a dead worker's queue too, so no
# more wait there
SHARDS_PER_WORKER = 2
LOCALHOST = "127.0.0.1"
# what a run that ends early says last
TAKES_UP = "Shards with receipts are done, and the same command takes up the rest"
SCHEDULER_GONE = (
    "the Dask scheduler went away; shards with receipts are done, and the same command takes up the"
    " rest"
)
# What distributed reads a client's certificates from; those of a scheduler and its workers have
# these names with SCHEDULER or WORKER in place of CLIENT.
TLS_VARIABLES = tuple(
    f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
)


class ClusterError(RuntimeError):
    """No cluster to work with. The message says what was tried and what to do."""


@contextmanager
def open_cluster(
    settings: RunSettings, revision: str, factory: str = SEGMENTER
) -> Iterator[Client]:
    """A client of workers that hold the model of a planned revision, each worker with its share of
    the machine.

    A standing cluster keeps it for the next run of that model, until its scheduler is restarted or
    `client.unregister_worker_plugin` is called with its name (`tasks.worker.resident_name`).

    Raises:
        ClusterError: no scheduler answers at `settings.scheduler`, it has no workers, or they lack
        this package.
    """
    with _run_owns_failures(), _connect(settings) as client:
        model = ResidentModel(
            worker_model(settings),
            settings.segment,
            revision=revision,
            threads=_threads(settings),
            factory=factory,
        )
        try:
            client.register_plugin(model)
        except Exception as error:
            client.unregister_worker_plugin(model.name)  # the next run is to try again
            if not isinstance(error, ImportError):
                raise
            raise ClusterError(
                f"a worker cannot import {error.name}: install wordmask on every worker, in the"
                " version that runs here"
            ) from None
        yield client


def shard_resources(client: Client) -> dict[str, float]:
    """What one shard occupies of a worker: half a GPU where every worker offers one, so that each
    has two at a time: one that has the model (`tasks.worker.ModelLock`), and one that reads before
    it or writes after it."""
    workers = workers_of(client)
    return (
        {"GPU": 1 / SHARDS_PER_WORKER}
        if workers and all(worker["resources"].get("GPU") for worker in workers.values())
        else {}
    )


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of its workers at this moment, by their addresses. Raises
    ClusterError if it went away.
    """
    info = client.scheduler_info(n_workers=-1)
    if "workers" not in info:
        raise ClusterError(SCHEDULER_GONE)
    return dict(info["workers"])


def replace_lost(client: Client) -> None:
    """Have workers started in place of those that Dask could not start again, where the cluster is
    ours. Does not wait for them.
    """
    cluster = client.cluster
    if cluster is None:
        return

    def replace() -> None:
        for name in [
            name
            for name, nanny in cluster.workers.items()
            if nanny.status in (Status.closed, Status.failed)
        ]:
            del cluster.workers[name]
        cluster.scale(len(cluster.worker_spec))  # starts those of the plan that are missing

    cluster.loop.add_callback(replace)


def worker_count(settings: RunSettings) -> int:
    """Workers to start on this machine: as told, else one per GPU, else one per core."""
    return settings.workers or _gpus(settings) or _cores()


def worker_model(settings: RunSettings) -> ModelSettings:
    """The model as a worker is told to load it. dask-cuda makes each worker's own GPU its first
    one; without it, `ResidentModel` takes the one of the worker's number."""
    return (
        settings.model.model_copy(update={"device": "cuda:0"})
        if _wants_dask_cuda(settings)
        else settings.model
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(settings: RunSettings) -> int:
    """GPUs to use on this machine."""
    device = settings.model.device
    if device in (None, "cuda"):
        return torch.cuda.device_count()
    return int(device.startswith("cuda:"))


def _wants_dask_cuda(settings: RunSettings) -> bool:
    chosen_by_us = settings.scheduler is None and settings.model.device in (None, "cuda")
    return (
        chosen_by_us
        and 0 < worker_count(settings) <= _gpus(settings)
        and importlib.util.find_spec("dask_cuda") is not None
    )


def _threads(settings: RunSettings) -> int | None:
    """Threads of numeric libraries per worker. A standing cluster's workers are its owner's to
    divide.
    """
    return None if settings.scheduler else max(1, _cores() // worker_count(settings))


def worker_environ(threads: int | None) -> dict[str, str]:
    """What a worker's process must find in its environment as it starts.

    With an arena for each thread the C library keeps freed blocks where no other thread can have
    them: after 1,500 rows a worker had grown by a sixth, with one arena by a fiftieth
    (tests/benchmarks/RESULTS.md).
    """
    of_threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {"MALLOC_ARENA_MAX": "1"} | (
        {name: str(threads) for name in of_threads} if threads else {}
    )


@contextmanager
def _run_owns_failures() -> Iterator[None]:
    failures = {
        # A worker's death is reported at once rather than after three silent repetitions: the run
        # counts the attempts.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.admin.log-length": 0,
        # After 15 seconds Dask would close the nanny of a worker that died and is not there again,
        # and never replace it. On a busy machine a worker may take longer than that just to import,
        # and in the end none would be left.
        "distributed.deploy.lost-worker-timeout": "1 day",
    }
    with dask.config.set(failures):
        yield


@contextmanager
def _connect(settings: RunSettings) -> Iterator[Client]:
    if settings.scheduler is None:
        with _local_cluster(settings) as cluster, Client(cluster) as client:
            yield client
        return
    is_tls = settings.scheduler.startswith("tls://")
    remedy = (
        f"Check {', '.join(TLS_VARIABLES)}"
        if is_tls
        else "Start one with `dask scheduler`; one with TLS is named tls://HOST:PORT"
    )
    try:
        if is_tls and not dask.config.get("distributed.comm.tls.client.cert"):
            raise ValueError("no certificate of the client is named")
        client = Client(settings.scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--scheduler {settings.scheduler}: no Dask scheduler answers there ({error}). {remedy}"
        ) from None
    with client:
        _require_workers(client, settings.scheduler)
        yield client


def _require_workers(client: Client, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise ClusterError(
            f"--scheduler {scheduler}: has no workers after {CONNECT_SECONDS} s. Start some with"
            f" `dask worker {scheduler}`"
        ) from None


def _local_cluster(settings: RunSettings) -> LocalCluster:
    count, gpus, threads = worker_count(settings), _gpus(settings), _threads(settings)
    options: dict[str, Any] = {
        "n_workers": count,
        "threads_per_worker": SHARDS_PER_WORKER,
        "resources": {"GPU": 1} if gpus else None,
        "host": LOCALHOST,
        # Any free port for the status page: a fixed one would have a second run on this machine
        # complain.
        "dashboard_address": f"{LOCALHOST}:0",
        # Dask's limit acts on data it holds, and it holds receipts; what it would kill is a large
        # model while it loads.
        "memory_limit": 0,
        "silence_logs": "CRITICAL",
    }
    # at its start it lets interrupts through again, so that must not happen within
    resource_tracker.ensure_running()
    # Workers outlive an interrupt until the cluster is closed, rather than dying of it with a
    # traceback each.
    with (
        held_back(),
        dask.config.set({"distributed.nanny.pre-spawn-environ": worker_environ(threads)}),
    ):
        if _wants_dask_cuda(settings):
            from dask_cuda import LocalCUDACluster  # an option, so imported only where it is used

            return LocalCUDACluster(**options)
        return LocalCluster(processes=True, **options)
