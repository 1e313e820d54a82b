"""Tasks given to workers, and what comes of them, for as long as there are healthy workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from distributed import Client, Future, as_completed

from wordmask.flows.execution.cluster import (
    RESUME_HINT,
    SCHEDULER_GONE,
    ClusterError,
    OnUnfit,
    ignore_unfit,
    replace_lost_workers,
    restart_worker,
    shard_resources,
    workers_of,
)
from wordmask.tasks.telemetry.logs import logger
from wordmask.tasks.worker import BrokenDeviceError, UnhealthyWorkerError

CHECK_SECONDS = 5.0  # between two looks at the workers
# Without any worker, until a run ends: a machine that was taken back may be replaced by then.
NO_WORKER_SECONDS = 600.0
BROKEN_DEVICES = 2  # that broke under a task, before the task is blamed rather than they


@dataclass(kw_only=True)
class _Task:
    """A task, and the newest attempt at it.

    `future`: None while no worker may run it. `workers`: addresses of those that may; None: all.
    `broken_devices`: how many broke under it.
    """

    key: str
    submit: Callable[..., Future]
    future: Future | None = None
    workers: frozenset[str] | None = None
    broken_devices: int = 0


class _ResultLostError(RuntimeError):
    """A worker died before it sent a result; Dask has another one run the task."""


class WorkerPool:
    """The workers of a cluster, and the tasks that they run.

    Dask waits for workers without end. Here unhealthy ones get no more tasks, and a cluster that
    stays without a healthy one is an error. Where the cluster is the run's own, lost workers are
    replaced, and an unhealthy one is restarted once.

    Args:
        client: of the cluster.
        check: called every `CHECK_SECONDS` of waiting. It raises what is to end the wait.

    `on_unfit` is called for each worker that gets no more tasks.
    """

    def __init__(self, client: Client, check: Callable[[], None] = lambda: None) -> None:
        self.on_unfit: OnUnfit = ignore_unfit
        self._client = client
        self._check = check
        self._resources = shard_resources(client)
        self._completed = as_completed(loop=client.loop, raise_errors=False)
        now = time.monotonic()
        self._checked_at = now  # when the workers were looked at
        self._healthy_at = now  # when a healthy one was seen
        self._tasks: dict[str, _Task] = {}  # by the key that Dask knows their newest attempt by
        self._attempts = count()
        self._unhealthy: dict[str, str] = {}  # addresses, and why
        # Addresses of unhealthy workers of the run's own that are to be restarted, or just are.
        self._to_restart: set[str] = set()
        self._restarting: set[str] = set()
        self._restarted: set[Any] = set()  # names of workers, which outlive their addresses
        self._most_workers = 0  # that were there at once

    def submit(self, key: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Give a task to a healthy worker; `next_finished` returns what comes of it."""
        submit = partial(
            self._client.submit,
            function,
            *args,
            **options,
            resources=self._resources,
            pure=False,
        )
        self._start(_Task(key=key, submit=submit))

    def healthy_workers(self) -> frozenset[str]:
        """Return the addresses of the workers that are there now and have not proved unhealthy.

        Raises:
            ClusterError: all have, and none is missing that could come back.
        """
        workers = frozenset(workers_of(self._client))
        self._most_workers = max(self._most_workers, len(workers))
        healthy = workers - self._unhealthy.keys()
        restarts = self._to_restart | self._restarting
        may_come_back = self._most_workers > len(workers) or workers & restarts
        if not healthy and workers and not may_come_back:
            reasons = sorted(self._unhealthy[address] for address in workers)
            raise ClusterError(
                f"no fit worker is left: {'; '.join(reasons[:3])}. Mend or restart them."
                f" {RESUME_HINT}"
            )
        return healthy

    def next_finished(self) -> tuple[str, Any]:
        """Wait for a task to finish, and return its key and its result or exception.

        The exception is the task's own, or its worker's death (`KilledWorker`). A task that an
        unhealthy worker failed is given to another. Dask forgets a finished task, and does not run
        it again when the worker that ran it dies.

        Raises:
            ClusterError: the scheduler went away, there was no worker for `NO_WORKER_SECONDS`, or
                none is healthy.
        """
        while True:
            future = self._next_future()
            task = self._tasks.get(future.key)
            if task is None:  # cancelled: another attempt took its place
                continue
            try:
                result = _result_of(future)
            except _ResultLostError:
                self._completed.add(future)
                continue
            del self._tasks[future.key]
            if isinstance(result, UnhealthyWorkerError):
                self._exclude(result)
                if _may_run_elsewhere(task, result):
                    self._start(task)
                    continue
            return task.key, result

    def _next_future(self) -> Future:
        arrival = self._completed.thread_condition
        while True:
            self._check()
            if time.monotonic() > self._checked_at + CHECK_SECONDS:
                self._check_workers()
            with arrival:
                if arrival.wait_for(self._completed.has_ready, CHECK_SECONDS):
                    break
        return next(self._completed)

    def _start(self, task: _Task) -> None:
        """Begin an attempt at a task, on healthy workers alone once there are unhealthy ones."""
        key = f"{task.key}-{next(self._attempts)}"
        task.future = None
        task.workers = None
        where: list[str] | None = None
        if self._unhealthy:
            task.workers = self.healthy_workers()
            where = sorted(task.workers)
        self._tasks[key] = task
        if where == []:  # to Dask, no worker means any
            return
        task.future = task.submit(key=key, workers=where)
        self._completed.add(task.future)

    def _exclude(self, error: UnhealthyWorkerError) -> None:
        """Give a worker nothing more."""
        address = error.address
        if address in self._unhealthy:
            return
        self._unhealthy[address] = str(error)
        logger.error(
            "worker is unfit and gets no more shards",
            extra={"address": address, "reason": str(error)},
        )
        self.on_unfit(address, str(error.args[0]))
        if self._client.cluster is not None and self._may_restart(address):
            self._to_restart.add(address)

    def _may_restart(self, address: str) -> bool:
        """Tell whether a worker was not restarted before."""
        worker = workers_of(self._client).get(address)
        if worker is None or worker["name"] in self._restarted:
            return False
        self._restarted.add(worker["name"])
        return True

    def _restart_idle(self) -> None:
        """Restart unhealthy workers of the run's own, once no task is left on them."""
        if not self._to_restart and not self._restarting:
            return
        processing = self._client.processing()
        self._to_restart &= processing.keys()  # the next process of a worker has another address
        self._restarting &= processing.keys()
        idle = {address for address in self._to_restart if not processing[address]}
        for address in idle:
            restart_worker(self._client, address)
        self._to_restart -= idle
        self._restarting |= idle

    def _check_workers(self) -> None:
        """Have lost workers replaced, and move tasks that wait for workers that are gone."""
        healthy = self.healthy_workers()
        self._checked_at = time.monotonic()
        if healthy:
            self._healthy_at = self._checked_at
            self._move_stranded(healthy)
        else:
            self._require_patience(self._checked_at - self._healthy_at)
        self._restart_idle()
        replace_lost_workers(self._client)

    def _require_patience(self, seconds: float) -> None:
        if seconds > NO_WORKER_SECONDS:
            raise ClusterError(
                f"no worker is left, and none came back within {seconds:.0f} s. Their machines'"
                " logs say why they ended; where memory was short, --batch-rows 8 or --workers 1"
                f" takes less. {RESUME_HINT}"
            )
        logger.warning(
            "waiting for workers, of which there are none", extra={"seconds": round(seconds)}
        )

    def _move_stranded(self, healthy: frozenset[str]) -> None:
        """Submit tasks again that none of the workers that are there may run."""
        for key, task in list(self._tasks.items()):
            if task.workers is None or task.workers & healthy:
                continue
            if task.future is not None and task.future.done():
                continue
            del self._tasks[key]
            if task.future is not None:
                task.future.cancel()
            self._start(task)


def _result_of(future: Future) -> Any:
    """Return what a task ended with: its result, or its exception.

    Raises:
        ClusterError: the scheduler forgot the task. It may be there again, without our model.
    """
    try:
        return future.result(timeout=CHECK_SECONDS)
    except TimeoutError as error:
        if future.status != "error":
            raise _ResultLostError from error
        return future.exception()
    except Exception as error:
        if future.cancelled():  # not by us
            raise ClusterError(SCHEDULER_GONE) from None
        return error


def _may_run_elsewhere(task: _Task, error: UnhealthyWorkerError) -> bool:
    """Tell whether another worker may run a task, which is not to blame itself."""
    if isinstance(error, BrokenDeviceError):
        task.broken_devices += 1
    return task.broken_devices < BROKEN_DEVICES
