"""Workers for a run: started on this machine, or those of a standing Dask cluster.

What is started listens on localhost alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import dask
import torch
from distributed import Client, LocalCluster, Status

from wordmask.flows.execution.signals import interrupts_blocked
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.telemetry.logs import logger
from wordmask.tasks.worker import SEGMENTER, ResidentModel, load_problem

CONNECT_SECONDS = 20
# At a time: one has the model, one reads or writes. Dask blames a dead worker's queue too, so no
# more wait there.
SHARDS_PER_WORKER = 2
LOCALHOST = "127.0.0.1"
# The last words of a run that ends early.
RESUME_HINT = "Shards with receipts are done, and the same command takes up the rest"
SCHEDULER_GONE = (
    "the Dask scheduler went away; shards with receipts are done, and the same command takes up the"
    " rest"
)
# What distributed reads a client's certificates from; those of a scheduler and its workers have
# these names with SCHEDULER or WORKER in place of CLIENT.
TLS_VARIABLES = tuple(
    f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Dask's configuration for a run, which deals with failures itself.
FAILURE_CONFIG = {
    # A worker's death is reported at once rather than after three silent repetitions: the run
    # counts the attempts.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.admin.log-length": 0,
    # After 15 seconds Dask would close the nanny of a worker that died and is not there again, and
    # never replace it. On a busy machine a worker may take longer than that just to import, and in
    # the end none would be left.
    "distributed.deploy.lost-worker-timeout": "1 day",
}


class ClusterError(RuntimeError):
    """There is no cluster to work with. The message says what was tried and what to do."""


# Called with the address of a worker that does no shards of the run, and why.
OnUnfit = Callable[[str, str], None]


def ignore_unfit(_address: str, _reason: str) -> None:
    """Report to nobody."""


@contextmanager
def open_cluster(
    settings: RunSettings,
    revision: str,
    factory: str = SEGMENTER,
    on_unfit: OnUnfit = ignore_unfit,
) -> Generator[Client]:
    """Connect to workers that have the model of a planned revision, and yield the client.

    A worker that could not load the model is named and left to the dispatcher, which gives it
    nothing more once it has failed a shard. A standing cluster keeps the model for the next run,
    until its scheduler is restarted or `client.unregister_worker_plugin` is called with its name
    (`resident_name`).

    Args:
        settings: of the run; `scheduler` names a standing cluster, None starts workers here.
        revision: of the model that the run was planned with.
        factory: makes the segmenter, as "module:attribute".
        on_unfit: called for each worker that could not load the model.

    Raises:
        ClusterError: no scheduler answers at `settings.scheduler`, it has no workers, or none of
            them could load the model.
    """
    with dask.config.set(FAILURE_CONFIG), _connect(settings) as client:
        model = ResidentModel(
            settings.model,
            settings.segment,
            revision=revision,
            threads=_threads(settings),
            factory=factory,
        )
        for address, reason in _load_model(client, model).items():
            on_unfit(address, reason)
        yield client


def _load_model(client: Client, model: ResidentModel) -> dict[str, str]:
    """Have the workers load the model, and return those that could not, and why.

    Raises:
        ClusterError: none could.
    """
    # One worker lacks this package, or died of the model: the others have it all the same.
    with suppress(ImportError, OSError):
        client.register_plugin(model)
    problems = _load_problems(client, model)
    unfit = [address for address, problem in problems.items() if problem]
    if unfit:  # what another process had may be free by now
        problems |= _load_problems(client, model, workers=unfit, again=True)
    reasons = {address: _reason(problem) for address, problem in problems.items() if problem}
    for address, reason in reasons.items():
        logger.error("worker cannot load the model", extra={"address": address, "reason": reason})
    if reasons and len(reasons) == len(problems):
        client.unregister_worker_plugin(model.name)  # the next run is to try again
        shown = "; ".join(f"worker {address}: {reason}" for address, reason in reasons.items())
        raise ClusterError(f"no worker can load the model: {shown}. Mend them. {RESUME_HINT}")
    return reasons


def _reason(problem: str | Exception) -> str:
    if isinstance(problem, Exception):
        return f"{type(problem).__name__}: {problem}; install wordmask there, in our version"
    return problem


def _load_problems(
    client: Client, model: ResidentModel, *, workers: list[str] | None = None, again: bool = False
) -> dict[str, str | Exception | None]:
    """Return by worker why it cannot do the run's shards, None if it can."""
    problems: dict[str, str | Exception | None] = client.run(
        load_problem, model.name, model.segment, again=again, workers=workers, on_error="return"
    )
    return problems


def shard_resources(client: Client) -> dict[str, float]:
    """Return what one shard occupies of a worker: half a GPU where every worker offers one.

    Each worker then has two shards at a time: one that has the model (`ModelLock`),
    and one that reads before it or writes after it.
    """
    workers = workers_of(client).values()
    if workers and all(worker["resources"].get("GPU") for worker in workers):
        return {"GPU": 1 / SHARDS_PER_WORKER}
    return {}


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows of its workers now, by their addresses.

    Raises:
        ClusterError: the scheduler went away.
    """
    info = client.scheduler_info(n_workers=-1)
    if "workers" not in info:
        raise ClusterError(SCHEDULER_GONE)
    return dict(info["workers"])


def replace_lost_workers(client: Client) -> None:
    """Start workers in place of those that Dask gave up, without waiting for them.

    Does nothing to a standing cluster, whose workers are its owner's.
    """
    cluster = client.cluster
    if cluster is None:
        return

    def replace() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(len(cluster.worker_spec))  # starts those of the plan that are missing

    cluster.loop.add_callback(replace)


def restart_worker(client: Client, address: str) -> None:
    """Start the process of a worker anew, without waiting for it, where the cluster is our own."""
    for nanny in client.cluster.workers.values():
        if nanny.worker_address == address:
            client.cluster.loop.add_callback(nanny.restart)


def worker_count(settings: RunSettings) -> int:
    """Return how many workers to start here: as set, else one per GPU, else one per core."""
    return settings.workers or _gpus(settings) or _cores()


def worker_environ(threads: int | None) -> dict[str, str]:
    """Return what a worker's process must find in its environment as it starts.

    With an arena for each thread the C library keeps freed blocks where no other thread can have
    them: after 1,500 rows a worker had grown by a sixth, with one arena by a fiftieth
    (tests/benchmarks/RESULTS.md).
    """
    environ = {"MALLOC_ARENA_MAX": "1"}
    if threads is not None:
        environ |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    return environ


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(settings: RunSettings) -> int:
    """Return how many GPUs of this machine to use."""
    device = settings.model.device
    if device in (None, "cuda"):
        return torch.cuda.device_count()
    return int(device.startswith("cuda:"))


def _uses_dask_cuda(settings: RunSettings) -> bool:
    if settings.scheduler is not None or settings.model.device not in (None, "cuda"):
        return False
    has_gpu_each = 0 < worker_count(settings) <= _gpus(settings)
    return has_gpu_each and importlib.util.find_spec("dask_cuda") is not None


def _threads(settings: RunSettings) -> int | None:
    """Return the threads of a worker's numeric libraries.

    None: a standing cluster's workers are its owner's to divide.
    """
    if settings.scheduler:
        return None
    return max(1, _cores() // worker_count(settings))


@contextmanager
def _connect(settings: RunSettings) -> Generator[Client]:
    if settings.scheduler is None:
        with _local_cluster(settings) as cluster, Client(cluster) as client:
            yield client
        return
    with _standing_client(settings.scheduler) as client:
        _require_workers(client, settings.scheduler)
        yield client


def _standing_client(scheduler: str) -> Client:
    is_tls = scheduler.startswith("tls://")
    try:
        if is_tls and not dask.config.get("distributed.comm.tls.client.cert"):
            raise ValueError("no certificate of the client is named")
        return Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        remedy = "Start one with `dask scheduler`; one with TLS is named tls://HOST:PORT"
        if is_tls:
            remedy = f"Check {', '.join(TLS_VARIABLES)}"
        raise ClusterError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}). {remedy}"
        ) from None


def _require_workers(client: Client, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise ClusterError(
            f"--scheduler {scheduler}: has no workers after {CONNECT_SECONDS} s. Start some with"
            f" `dask worker {scheduler}`"
        ) from None


def _local_cluster(settings: RunSettings) -> LocalCluster:
    options: dict[str, Any] = {
        "n_workers": worker_count(settings),
        "threads_per_worker": SHARDS_PER_WORKER,
        "resources": None,
        "host": LOCALHOST,
        # Any free port for the status page: a fixed one would have a second run on this machine
        # complain.
        "dashboard_address": f"{LOCALHOST}:0",
        # Dask's limit acts on data it holds, and it holds receipts; what it would kill is a large
        # model while it loads.
        "memory_limit": 0,
        "silence_logs": "CRITICAL",
    }
    if _gpus(settings):
        options["resources"] = {"GPU": 1}
    environ = worker_environ(_threads(settings))
    # at its start it lets interrupts through again, so that must not happen within
    resource_tracker.ensure_running()
    # Workers outlive an interrupt until the cluster is closed, rather than dying of it with a
    # traceback each.
    with interrupts_blocked(), dask.config.set({"distributed.nanny.pre-spawn-environ": environ}):
        if _uses_dask_cuda(settings):
            from dask_cuda import LocalCUDACluster  # an option, so imported only where it is used

            return LocalCUDACluster(**options)
        return LocalCluster(processes=True, **options)
