"""Tasks that workers were given, and what comes of them, for as long as there are workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distributed import Client, as_completed

from flows.cluster import SCHEDULER_GONE, ClusterError, replace_lost, shard_resources, workers_of
from tasks.logs import logger

LOOK_EVERY = 5.0  # seconds, at the workers
NO_WORKER_SECONDS = 600.0  # without any, until a run ends: a machine that was taken back may be replaced by then


class InFlight:
    """Dask waits for workers without end. Here lost ones are replaced where the cluster is ours, and one that stays without any is an
    error."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._resources = shard_resources(client)
        self._completed = as_completed(loop=client.loop, raise_errors=False)
        self._looked = self._seen = time.monotonic()  # at the workers, and one of them

    def submit(self, key: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Give a task to a worker; `next` tells what comes of it."""
        self._completed.add(self._client.submit(function, *args, **options, key=key, resources=self._resources, pure=False))

    def next(self) -> tuple[str, Any]:
        """Wait for a task to end. Gives its key and its result, or what it ended with: an exception of its own, or its worker's
        death. Dask forgets it then, and does not do it again when the worker that did it dies.

        Raises:
            ClusterError: the scheduler went away, or there was no worker for `NO_WORKER_SECONDS`.
        """
        arrival = self._completed.thread_condition
        while True:
            if time.monotonic() > self._looked + LOOK_EVERY:
                self._look()
            with arrival:
                if not arrival.wait_for(self._completed.has_ready, LOOK_EVERY):
                    continue
            future = next(self._completed)
            try:
                return future.key, future.result(timeout=LOOK_EVERY)
            except TimeoutError:
                if future.status == "error":
                    return future.key, future.exception()
                self._completed.add(future)  # its worker died before it told the result, and another does it again
            except Exception as error:
                if future.cancelled():  # nobody does that here: a scheduler forgot it, which may be there again, without our model
                    raise ClusterError(SCHEDULER_GONE) from None
                return future.key, error

    def _look(self) -> None:
        """See that there are workers, and bring lost ones back."""
        workers, self._looked = workers_of(self._client), time.monotonic()
        without = self._looked - self._seen
        if workers:
            self._seen = self._looked
        elif without > NO_WORKER_SECONDS:
            raise ClusterError(
                f"no worker is left, and none came back within {without:.0f} s. Their machines' logs say why they ended; where memory was "
                "short, --batch-rows 8 or --workers 1 takes less. Shards with receipts are done, and the same command takes up the rest"
            )
        else:
            logger.warning("waiting for workers, of which there are none", extra={"seconds": round(without)})
        replace_lost(self._client)
