"""Tasks that workers were given, and what comes of them, for as long as there are workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from distributed import Client, Future, as_completed

from wordmask.flows.execution.cluster import (
    SCHEDULER_GONE,
    TAKES_UP,
    ClusterError,
    replace_lost,
    shard_resources,
    workers_of,
)
from wordmask.tasks.telemetry.logs import logger
from wordmask.tasks.worker import BrokenDeviceError, UnhealthyWorkerError

LOOK_EVERY = 5.0  # seconds, at the workers
NO_WORKER_SECONDS = (
    600.0  # without any, until a run ends: a machine that was taken back may be replaced by then
)
BREAKS = 2  # devices that broke under a task, before it is blamed rather than they


@dataclass(kw_only=True)
class _Task:
    """`future`: of its newest try, None while no worker is fit. `among`: the workers that may do
    that, None: all. `breaks`: devices that broke under it."""

    key: str
    make: Callable[..., Future]
    future: Future | None = None
    among: frozenset[str] | None = None
    breaks: int = 0


class InFlight:
    """Dask waits for workers without end. Here lost ones are replaced where the cluster is ours,
    unfit ones are given nothing more, and a cluster that stays without a fit one is an error."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._resources = shard_resources(client)
        self._completed = as_completed(loop=client.loop, raise_errors=False)
        self._looked = self._seen = time.monotonic()  # at the workers, and a fit one of them
        self._tasks: dict[str, _Task] = {}  # by the key that Dask knows their newest try by
        self._tries = count()
        self._unfit: dict[str, str] = {}  # addresses, and why
        self._most = 0  # workers that were there at once

    def submit(self, key: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Give a task to a fit worker; `next` tells what comes of it."""

        def make(**where: Any) -> Future:
            return self._client.submit(
                function, *args, **options, resources=self._resources, pure=False, **where
            )

        self._try(_Task(key=key, make=make))

    def fit_workers(self) -> frozenset[str]:
        """Addresses of the workers that are there at this moment and did not turn out unfit. Raises
        ClusterError if all did and none is missing that could come back."""
        workers = frozenset(workers_of(self._client))
        self._most = max(self._most, len(workers))
        if 0 < self._most <= len(workers) and not workers - self._unfit.keys():
            reasons = "; ".join(sorted(self._unfit[address] for address in workers)[:3])
            raise ClusterError(
                f"no fit worker is left: {reasons}. Mend or restart them. {TAKES_UP}"
            )
        return workers - self._unfit.keys()

    def next(self) -> tuple[str, Any]:
        """Wait for a task to end. Gives its key and its result, or what it ended with: an exception
        of its own, or its worker's death. Dask forgets it then, and does not do it again when the
        worker that did it dies. What an unfit worker failed is given to another.

        Raises:
            ClusterError: the scheduler went away, or there was no worker for `NO_WORKER_SECONDS`,
            or none is fit.
        """
        while True:
            future = self._next_future()
            task = self._tasks.get(future.key)
            if task is None:  # it is tried elsewhere
                continue
            try:
                result = future.result(timeout=LOOK_EVERY)
            except TimeoutError:
                if future.status != "error":
                    self._completed.add(
                        future
                    )  # its worker died before it told the result, and another does it again
                    continue
                result = future.exception()
            except Exception as error:
                if (
                    future.cancelled()
                ):  # not by us: a scheduler forgot it, which may be there again, without our model
                    raise ClusterError(SCHEDULER_GONE) from None
                result = error
            del self._tasks[future.key]
            if isinstance(result, UnhealthyWorkerError) and self._is_tried_elsewhere(task, result):
                continue
            return task.key, result

    def _next_future(self) -> Future:
        arrival = self._completed.thread_condition
        while True:
            if time.monotonic() > self._looked + LOOK_EVERY:
                self._look()
            with arrival:
                if arrival.wait_for(self._completed.has_ready, LOOK_EVERY):
                    break
        return next(self._completed)

    def _try(self, task: _Task) -> None:
        task.among = self.fit_workers() if self._unfit else None
        name = f"{task.key}-{next(self._tries)}"
        self._tasks[name] = task
        if task.among is None or task.among:
            task.future = task.make(key=name, workers=task.among and sorted(task.among))
            self._completed.add(task.future)
        else:  # to Dask no worker would mean any
            task.future = None

    def _is_tried_elsewhere(self, task: _Task, error: UnhealthyWorkerError) -> bool:
        """Give its worker nothing more. The task is tried by another, unless it is to blame
        itself.
        """
        if error.address not in self._unfit:
            logger.error(
                "worker is unfit and gets no more shards",
                extra={"address": error.address, "reason": str(error)},
            )
        self._unfit[error.address] = str(error)
        task.breaks += isinstance(error, BrokenDeviceError)
        if task.breaks >= BREAKS:
            return False
        self._try(task)
        return True

    def _look(self) -> None:
        """See that there are workers, and bring lost ones back. What waits for workers that are
        gone is given to those that are there.
        """
        workers, self._looked = self.fit_workers(), time.monotonic()
        without = self._looked - self._seen
        if workers:
            self._seen = self._looked
        elif without > NO_WORKER_SECONDS:
            raise ClusterError(
                f"no worker is left, and none came back within {without:.0f} s. Their machines'"
                " logs say why they ended; where memory was short, --batch-rows 8 or --workers 1"
                f" takes less. {TAKES_UP}"
            )
        else:
            logger.warning(
                "waiting for workers, of which there are none", extra={"seconds": round(without)}
            )
        for name, task in [*self._tasks.items()] if workers else ():
            if (
                task.among is not None
                and not task.among & workers
                and not (task.future and task.future.done())
            ):
                del self._tasks[name]
                if task.future is not None:
                    task.future.cancel()
                self._try(task)
        replace_lost(self._client)
