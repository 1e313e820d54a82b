"""Rows that kill the process are found, in few trials, whatever their number and place."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from distributed import KilledWorker
from hypothesis import given
from hypothesis import strategies as st

from wordmask.flows.execution.bisect import bisect_poison_rows, find_poison_rows
from wordmask.flows.execution.budget import Budget, BudgetSpentError
from wordmask.flows.execution.cluster import ClusterError
from wordmask.schemas.runs import Plan, RowRange, Shard
from wordmask.schemas.settings import RunSettings


class Machine:
    """Survives ranges without poison rows, and counts its trials.

    The first `mishaps` trials die whatever they are given.
    """

    def __init__(self, poison_rows: set[int], mishaps: int = 0) -> None:
        self.poison_rows = poison_rows
        self.mishaps = mishaps
        self.trials = 0

    def survives(self, start: int, stop: int) -> bool:
        self.trials += 1
        if self.trials <= self.mishaps:
            return False
        return not self.poison_rows & set(range(start, stop))


@given(rows=st.integers(1, 300), data=st.data())
def test_exactly_the_rows_that_kill_are_found(rows: int, data: st.DataObject) -> None:
    poison_rows = data.draw(st.sets(st.integers(0, rows - 1), max_size=5))
    machine = Machine(poison_rows)
    assert bisect_poison_rows(rows, machine.survives) == tuple(sorted(poison_rows))
    trials_per_row = 2 * math.ceil(math.log2(rows + 1)) + 1
    assert machine.trials <= 2 + trials_per_row * max(1, len(poison_rows))


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_a_death_that_is_no_rows_fault_condemns_none(rows: int) -> None:
    machine = Machine(set(), mishaps=1)
    assert bisect_poison_rows(rows, machine.survives) == ()


class DeadlyPool:
    """A worker pool in which whoever works on a poison row dies; `always`: on no row too."""

    def __init__(self, poison_rows: set[int], *, always: bool = False) -> None:
        self._poison_rows = poison_rows
        self._always = always
        self._dies = False

    def submit(
        self, _key: str, _try: Any, _shard: Shard, _settings: RunSettings, start: int, stop: int
    ) -> None:
        self._dies = self._always or bool(self._poison_rows & set(range(start, stop)))

    def next_finished(self) -> tuple[str, Any]:
        if self._dies:
            return "try", KilledWorker("try", None, 0)
        return "try", None


def test_rows_are_not_blamed_where_workers_die_without_any(
    nine_shards: tuple[RunSettings, Plan],
) -> None:
    settings, plan = nine_shards
    shard = plan.shards[0].model_copy(update={"ranges": (RowRange(0, 0, 9),)})
    found = find_poison_rows(DeadlyPool({2, 7}), shard, settings, Budget())  # type: ignore[arg-type]
    assert found == (2, 7)
    with pytest.raises(ClusterError, match="workers die even with no row"):
        find_poison_rows(DeadlyPool(set(), always=True), shard, settings, Budget())  # type: ignore[arg-type]


def test_rows_that_kill_are_not_looked_for_longer_than_the_budget_allows(
    nine_shards: tuple[RunSettings, Plan],
) -> None:
    settings, plan = nine_shards
    spent = Budget(60.0, time.monotonic() - 61.0)
    with pytest.raises(BudgetSpentError):
        find_poison_rows(DeadlyPool({0}), plan.shards[0], settings, spent)  # type: ignore[arg-type]
