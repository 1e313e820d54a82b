"""Rows of a shard that kill the process working on them, found by halving."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from distributed import KilledWorker

from wordmask.flows.execution.budget import Budget
from wordmask.flows.execution.cluster import RESUME_HINT, ClusterError
from wordmask.flows.execution.futures import WorkerPool
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.shard import try_rows


def find_poison_rows(
    workers: WorkerPool, shard: Shard, settings: RunSettings, budget: Budget
) -> tuple[int, ...]:
    """Return the positions of a shard's rows that kill a worker by themselves.

    Rows are tried on workers that have nothing else to do. An exception that is not a worker's
    death is no row's fault and is raised.

    Raises:
        BudgetSpentError: there was no time left for a further trial.
        ClusterError: a worker dies without any row as well, as where its model takes more memory
            than there is.
    """

    def survives(start: int, stop: int) -> bool:
        budget.require()
        key = f"try-{shard.shard_id}-{start}-{stop}-{uuid4().hex[:8]}"
        workers.submit(key, try_rows, shard, settings, start, stop)
        _, result = workers.next_finished()
        if isinstance(result, Exception) and not isinstance(result, KilledWorker):
            raise result
        return result is None

    poison_rows = bisect_poison_rows(shard.rows, survives)
    if poison_rows and not survives(0, 0):
        raise ClusterError(
            "workers die even with no row to work on. Their machines' logs say why; where memory"
            f" is short, --workers 1 takes less. {RESUME_HINT}"
        )
    return poison_rows


def bisect_poison_rows(rows: int, survives: Callable[[int, int], bool]) -> tuple[int, ...]:
    """Return the positions of the rows that kill, in a shard that did not survive as a whole.

    A row is guilty if it kills alone, twice: one death may be the machine's fault. None is found
    where it takes several rows together.

    Args:
        rows: number of rows of the shard.
        survives: tries rows start..stop in a process of their own.
    """
    middle = rows // 2
    suspects = [(0, middle), (middle, rows)]
    guilty = []
    while suspects:
        start, stop = suspects.pop()
        if start == stop or survives(start, stop):
            continue
        if stop - start > 1:
            middle = (start + stop) // 2
            suspects += [(start, middle), (middle, stop)]
        elif not survives(start, stop):
            guilty.append(start)
    return tuple(sorted(guilty))
