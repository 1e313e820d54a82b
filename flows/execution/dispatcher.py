"""Shards to workers and back: a bounded window in flight, deaths counted, rows that kill isolated,
an end at the budget.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from distributed import Client, KilledWorker

from wordmask.flows.execution.bisect import isolate
from wordmask.flows.execution.cluster import SHARDS_PER_WORKER, TAKES_UP, ClusterError
from wordmask.flows.execution.futures import InFlight
from wordmask.schemas.runs import Receipt, Shard, ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.shard import NO_HINTS, process_shard, try_rows
from wordmask.tasks.storage import STORE_ERRORS
from wordmask.tasks.telemetry import metrics, traces
from wordmask.tasks.telemetry.logs import logger, without_credentials

# shards that it failed, for each that is in flight, with none done in between: then the store
# counts as gone
STORE_FAILURES = 2
DEATHS = 2  # of the workers that had a shard, before its rows are suspected rather than the machine


class StoreGoneError(RuntimeError):
    """The store fails for every shard. What was done has receipts."""


@dataclass(kw_only=True)
class Outcome:
    """`failures`: shards given up, each with the reason. `left`: shards that the budget did not
    reach.
    """

    failures: list[tuple[Shard, str]] = field(default_factory=list)
    left: list[Shard] = field(default_factory=list)


def run_shards(
    client: Client,
    shards: Sequence[Shard],
    settings: RunSettings,
    on_receipt: Callable[[Receipt], object],
    hints: Mapping[str, ShardHints] = MappingProxyType({}),
    run_id: str = "",
) -> Outcome:
    """Keep a bounded window of shards in flight until all are done, given up or, at the end of the
    budget, left.

    A shard is tried again when its worker died or its store failed; any other error is its own and
    final. One that outlived `DEATHS` workers is put aside until the others are done, as it may take
    them with it; then its rows are tried by halves, each on a worker that has nothing else, and
    those that kill are rejected. A worker that is unfit costs no shard an attempt.

    Raises:
        StoreGoneError: it failed one shard after the other and none was done in between: a long run
        does not try all of them. ClusterError: the scheduler went away, or all workers did and none
        came back, or none is fit.
    """
    waiting, attempts, deaths = deque(shards), Counter[str](), Counter[str]()
    in_flight, shard_of = InFlight(client), dict[str, Shard]()
    suspects: list[Shard] = []
    outcome = Outcome()
    store_failed: set[str] = set()  # shards, since one was done
    budget = _Budget(settings.budget_seconds)
    nonce = uuid4().hex[:8]  # another run on the same cluster may be at the same shard

    def submit(shard: Shard, killers: tuple[int, ...] = ()) -> None:
        what = hints.get(shard.shard_id, NO_HINTS).model_copy(update={"poison_rows": killers})
        attempts[shard.shard_id] += 1
        key = f"{shard.shard_id}-{nonce}-{attempts[shard.shard_id]}"
        shard_of[key] = shard
        in_flight.submit(
            key, process_shard, shard, settings, hints=what, run_id=run_id, within=traces.here()
        )

    def window() -> int:
        return SHARDS_PER_WORKER * max(1, len(in_flight.fit_workers()))

    def submit_more() -> None:
        most = window()
        while waiting and len(shard_of) < most and budget.allows_another:
            submit(waiting.popleft())
        metrics.WAITING.set(len(waiting))
        metrics.save("run")

    def try_again(shard: Shard, error: Exception, among: list[Shard] | deque[Shard]) -> None:
        among.append(shard)
        metrics.RETRIES.labels(type(error).__name__).inc()
        logger.warning(
            "shard tried again",
            extra=_about(shard) | {"reason": f"{type(error).__name__}: {error}"},
        )

    def give_up(shard: Shard, error: Exception) -> None:
        reason = without_credentials(
            f"{type(error).__name__}: {error} (attempt {attempts[shard.shard_id]})"
        )
        outcome.failures.append((shard, reason))
        logger.error("shard given up", extra=_about(shard) | {"reason": reason})

    submit_more()
    while shard_of:
        key, result = in_flight.next()
        shard = shard_of.pop(key)
        deaths[shard.shard_id] += isinstance(result, KilledWorker)
        store_fault = isinstance(result, STORE_ERRORS) and not isinstance(
            result, FileNotFoundError
        )  # which is its own input's
        if store_fault:
            store_failed.add(shard.shard_id)
            if len(store_failed) >= STORE_FAILURES * window():
                raise StoreGoneError(
                    f"the store failed {len(store_failed)} shards and none was done in between, at"
                    f" last with {type(result).__name__}: {result}. {TAKES_UP}"
                )
        may_retry = attempts[shard.shard_id] <= settings.retries
        if isinstance(result, Receipt):
            store_failed.clear()
            budget.took(result.timings.total)
            on_receipt(result)
        elif isinstance(result, KilledWorker) and deaths[shard.shard_id] >= DEATHS:
            try_again(shard, result, suspects)
        elif may_retry and (store_fault or isinstance(result, KilledWorker)):
            try_again(shard, result, waiting)
        else:
            give_up(shard, result)
        submit_more()
    outcome.left = [*waiting, *(suspects if not budget.allows_another else [])]
    for shard in suspects if budget.allows_another else []:
        submit(shard, _killers(in_flight, shard, settings))
        _, result = in_flight.next()
        if isinstance(result, Receipt):
            on_receipt(result)
        else:
            give_up(shard, result)
    return outcome


def _about(shard: Shard) -> dict[str, Any]:
    return {"shard_id": shard.shard_id, "file": shard.name, "first_row": shard.first_row}


def _killers(in_flight: InFlight, shard: Shard, settings: RunSettings) -> tuple[int, ...]:
    """Rows of the shard that kill a worker by themselves. Raises what else goes wrong: it is not a
    row's fault.

    Raises:
        ClusterError: a worker dies without any row as well, as where its model takes more memory
        than there is.
    """

    def survives(start: int, stop: int) -> bool:
        in_flight.submit(
            f"try-{shard.shard_id}-{start}-{stop}-{uuid4().hex[:8]}",
            try_rows,
            shard,
            settings,
            start,
            stop,
        )
        _, tried = in_flight.next()
        if isinstance(tried, Exception) and not isinstance(tried, KilledWorker):
            raise tried
        return tried is None

    killers = isolate(shard.rows, survives)
    if killers and not survives(0, 0):
        raise ClusterError(
            "workers die even with no row to work on. Their machines' logs say why; where memory"
            f" is short, --workers 1 takes less. {TAKES_UP}"
        )
    return killers


class _Budget:
    """Seconds in which a run may begin shards. The last ones are to end within it, if they take as
    long as those before.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._longest = 0.0

    def took(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)

    @property
    def allows_another(self) -> bool:
        return self._end is None or time.monotonic() + self._longest < self._end
