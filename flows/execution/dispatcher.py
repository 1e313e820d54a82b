"""Dispatch of shards to workers: a window, retries, rows that kill, store outages, a budget.

A shard is waiting, running, or finished: done, given up, or left by the budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from distributed import Client, KilledWorker

from wordmask.flows.execution.bisect import find_poison_rows
from wordmask.flows.execution.budget import Budget, BudgetSpentError
from wordmask.flows.execution.cluster import (
    RESUME_HINT,
    SHARDS_PER_WORKER,
    ClusterError,
    OnUnfit,
    ignore_unfit,
)
from wordmask.flows.execution.futures import WorkerPool
from wordmask.schemas.runs import Receipt, Shard, ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.lease import LeaseLostError
from wordmask.tasks.shard import NO_HINTS, run_shard
from wordmask.tasks.storage import STORE_ERRORS
from wordmask.tasks.table.read import InputChangedError
from wordmask.tasks.telemetry import metrics, traces
from wordmask.tasks.telemetry.logs import logger, without_credentials

# The store counts as gone when it has failed so many shards, for each shard of the window, and
# none was done in between.
STORE_FAILURES = 2
# Workers that died under a shard, before its rows are suspected rather than the machines.
DEATHS = 2


class StoreGoneError(RuntimeError):
    """The store fails for every shard. What was done has receipts."""


@dataclass(kw_only=True)
class Outcome:
    """What became of the shards of a run.

    `done`: their ids. `failures`: given up, each with the reason. `changed_files`: names of files
    that were not the planned ones any more. `left`: not reached within the budget.
    """

    done: set[str] = field(default_factory=set)
    failures: list[tuple[Shard, str]] = field(default_factory=list)
    changed_files: set[str] = field(default_factory=set)
    left: list[Shard] = field(default_factory=list)


@dataclass(kw_only=True)
class _Job:
    """A shard, how often it was submitted, and how many workers died under it."""

    shard: Shard
    attempts: int = 0
    deaths: int = 0


class Dispatcher:
    """Keeps a bounded window of shards running until all are done, given up, or left.

    A shard is tried again when its worker died or the store failed; any other error is its own and
    final. A shard under which `DEATHS` workers died is put aside until the others are finished, as
    it may take them with it; then its rows are tried by halves, each on a worker that has nothing
    else, and rows that kill are rejected. A worker that is unhealthy costs no shard an attempt.

    One dispatcher carries out one run.

    Args:
        client: of a cluster whose workers have the run's model (`cluster.open_cluster`).
        settings: of the run.
        on_receipt: called for each shard that is done.
        hints: by shard id, what is known of a shard's rows beforehand.
        run_id: for logs and traces.
        fence: number of the lease under which the run works.
        check: called before shards are submitted, and every few seconds of waiting. What it raises
            ends the run; shards in flight are left to themselves.
        budget: of the run. Default: that of the settings, from now on.
    """

    def __init__(
        self,
        client: Client,
        settings: RunSettings,
        on_receipt: Callable[[Receipt], object],
        hints: Mapping[str, ShardHints] = MappingProxyType({}),
        run_id: str = "",
        fence: int = 0,
        check: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
    ) -> None:
        self._workers = WorkerPool(client, check)
        self._check = check
        self._settings = settings
        self._on_receipt = on_receipt
        self._hints = hints
        self._run_id = run_id
        self._fence = fence
        self._budget = budget or Budget(settings.budget_seconds)
        self._nonce = uuid4().hex[:8]  # another run on the same cluster may have the same shard
        self._waiting: deque[_Job] = deque()
        self._running: dict[str, _Job] = {}  # by the key of their task
        self._suspects: list[_Job] = []  # workers died under them
        self._store_failed: set[str] = set()  # ids of shards, since one was done
        self._outcome = Outcome()

    def run(self, shards: Sequence[Shard], on_unfit: OnUnfit = ignore_unfit) -> Outcome:
        """Dispatch shards, and return those that were not done.

        Args:
            shards: the shards.
            on_unfit: called for each worker that gets no more of them.

        Raises:
            StoreGoneError: the store failed one shard after the other and none was done in between:
                a long run does not try all of them.
            ClusterError: the scheduler went away, or all workers did and none came back, or none is
                healthy.
        """
        self._workers.on_unfit = on_unfit
        self._waiting.extend(_Job(shard=shard) for shard in shards)
        self._fill_window()
        while self._running:
            key, result = self._workers.next_finished()
            self._finish(self._running.pop(key), result)
            self._fill_window()
        self._run_suspects()
        self._outcome.left = [job.shard for job in self._waiting]
        return self._outcome

    def _fill_window(self) -> None:
        self._check()
        size = self._window_size()
        while self._waiting and len(self._running) < size and self._budget.allows_another:
            job = self._waiting.popleft()
            key = self._submit(job)
            self._running[key] = job
        metrics.WAITING.set(len(self._waiting))
        metrics.save("run")

    def _window_size(self) -> int:
        return SHARDS_PER_WORKER * max(1, len(self._workers.healthy_workers()))

    def _submit(self, job: _Job, poison_rows: tuple[int, ...] = ()) -> str:
        """Submit a shard, and return the key of its task."""
        job.attempts += 1
        shard_id = job.shard.shard_id
        key = f"{shard_id}-{self._nonce}-{job.attempts}"
        hints = self._hints.get(shard_id, NO_HINTS)
        self._workers.submit(
            key,
            run_shard,
            job.shard,
            self._settings,
            hints=hints.model_copy(update={"poison_rows": poison_rows}),
            run_id=self._run_id,
            trace=traces.trace_context(),
            fence=self._fence,
        )
        return key

    def _finish(self, job: _Job, result: Receipt | Exception) -> None:
        if isinstance(result, Receipt):
            self._store_failed.clear()
            self._budget.record(result.timings.total)
            self._finish_done(result)
        elif isinstance(result, KilledWorker):
            self._finish_killed(job, result)
        elif _is_store_failure(result):
            self._finish_store_failure(job, result)
        else:
            self._give_up(job, result)

    def _finish_done(self, receipt: Receipt) -> None:
        self._outcome.done.add(receipt.shard.shard_id)
        self._on_receipt(receipt)

    def _finish_killed(self, job: _Job, error: Exception) -> None:
        job.deaths += 1
        if job.deaths >= DEATHS:
            self._suspects.append(job)
            _log_retry(job.shard, error)
        else:
            self._retry(job, error)

    def _finish_store_failure(self, job: _Job, error: Exception) -> None:
        self._store_failed.add(job.shard.shard_id)
        failed = len(self._store_failed)
        if failed >= STORE_FAILURES * self._window_size():
            raise StoreGoneError(
                f"the store failed {failed} shards and none was done in between, at"
                f" last with {type(error).__name__}: {error}. {RESUME_HINT}"
            )
        self._retry(job, error)

    def _retry(self, job: _Job, error: Exception) -> None:
        """Put a shard back, unless its retries are used up."""
        if job.attempts > self._settings.retries:
            self._give_up(job, error)
            return
        self._waiting.append(job)
        _log_retry(job.shard, error)

    def _give_up(self, job: _Job, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error} (attempt {job.attempts})"
        reason = without_credentials(reason)
        self._outcome.failures.append((job.shard, reason))
        if isinstance(error, InputChangedError):
            self._outcome.changed_files.add(job.shard.name)
        logger.error("shard given up", extra=_log_fields(job.shard, reason))

    def _run_suspects(self) -> None:
        """Run the shards under which workers died, one at a time, without the rows that kill."""
        for job in self._suspects:
            try:
                poison_rows = find_poison_rows(
                    self._workers, job.shard, self._settings, self._budget
                )
                self._budget.require()
            except BudgetSpentError:
                self._waiting.append(job)
                continue
            except (ClusterError, LeaseLostError):
                raise
            except Exception as error:  # of a trial that met a fault of its own
                self._give_up(job, error)
                continue
            self._submit(job, poison_rows)
            _, result = self._workers.next_finished()
            if isinstance(result, Receipt):
                self._finish_done(result)
            else:
                self._give_up(job, result)


def _is_store_failure(error: Exception) -> bool:
    """Tell whether the store failed; a file that is missing is the shard's own failure."""
    return isinstance(error, STORE_ERRORS) and not isinstance(error, FileNotFoundError)


def _log_retry(shard: Shard, error: Exception) -> None:
    kind = type(error).__name__
    metrics.RETRIES.labels(kind).inc()
    logger.warning("shard tried again", extra=_log_fields(shard, f"{kind}: {error}"))


def _log_fields(shard: Shard, reason: str) -> dict[str, Any]:
    return {
        "shard_id": shard.shard_id,
        "file": shard.name,
        "first_row": shard.first_row,
        "reason": reason,
    }
