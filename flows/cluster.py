"""Workers for a run: started on this machine, or a standing Dask cluster. Bound to localhost unless told otherwise."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import torch
from distributed import Client, LocalCluster

from schemas.settings import RunSettings
from tasks.worker import SEGMENTER, ResidentModel

CONNECT_SECONDS = 20


class ClusterError(RuntimeError):
    """No cluster to work with. The message says what was tried and what to do."""


@contextmanager
def open_cluster(settings: RunSettings, factory: str = SEGMENTER) -> Iterator[Client]:
    """A client of workers that hold the model, each shard's whole share of the machine.

    Raises:
        ClusterError: no scheduler answers at `settings.scheduler`.
    """
    with _quiet_dask(), _connect(settings) as client:
        client.register_plugin(ResidentModel(settings.model, settings.segment, threads=_threads(settings), factory=factory))
        yield client


def shard_resources(settings: RunSettings) -> dict[str, float]:
    """What one shard occupies of a worker: a GPU where the workers we start have one."""
    return {"GPU": 1} if settings.scheduler is None and _gpus(settings) else {}


def worker_count(settings: RunSettings) -> int:
    """Workers to start on this machine: as told, else one per GPU, else one per core."""
    return settings.workers or _gpus(settings) or _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(settings: RunSettings) -> int:
    return 0 if (settings.model.device or "cuda").startswith("cpu") else torch.cuda.device_count()


def _threads(settings: RunSettings) -> int | None:
    """Threads of numeric libraries per worker. A standing cluster's workers are its owner's to divide."""
    return None if settings.scheduler else max(1, _cores() // worker_count(settings))


@contextmanager
def _quiet_dask() -> Iterator[None]:
    # A worker's death is reported at once rather than after three silent repetitions: the run owns the retries.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.admin.log-length": 0}):
        yield


@contextmanager
def _connect(settings: RunSettings) -> Iterator[Client]:
    if settings.scheduler is not None:
        try:
            client = Client(settings.scheduler, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise ClusterError(
                f"--scheduler {settings.scheduler}: no Dask scheduler answers there ({error}). Start one with `dask scheduler`"
            ) from None
        with client:
            yield client
        return
    with _local_cluster(settings) as cluster, Client(cluster) as client:
        yield client


def _local_cluster(settings: RunSettings) -> LocalCluster:
    count, gpus, threads = worker_count(settings), _gpus(settings), _threads(settings)
    if gpus and importlib.util.find_spec("dask_cuda"):
        from dask_cuda import LocalCUDACluster  # an option, so imported only where it is used

        return LocalCUDACluster(n_workers=count, host="127.0.0.1", dashboard_address=None, resources={"GPU": 1})
    environ = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": environ}):
        return LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None,
            silence_logs="CRITICAL", resources={"GPU": 1} if gpus else None,
        )  # fmt: skip
