"""Rows that kill the process are found, in few trials, whatever their number and place."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wordmask.flows.execution.bisect import bisect_poison_rows


class Machine:
    """Survives what holds none of `killers`; counts how often it was asked. `mishaps` first trials
    die whatever they are given.
    """

    def __init__(self, killers: set[int], mishaps: int = 0) -> None:
        self.killers, self.mishaps, self.asked = killers, mishaps, 0

    def survives(self, start: int, stop: int) -> bool:
        self.asked += 1
        return self.asked > self.mishaps and not self.killers & set(range(start, stop))


@given(rows=st.integers(1, 300), data=st.data())
def test_exactly_the_killers_are_found(rows: int, data: st.DataObject) -> None:
    killers = data.draw(st.sets(st.integers(0, rows - 1), max_size=5))
    machine = Machine(killers)
    assert bisect_poison_rows(rows, machine.survives) == tuple(sorted(killers))
    assert machine.asked <= 2 + (2 * math.ceil(math.log2(rows + 1)) + 1) * max(1, len(killers))


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_a_death_that_is_no_rows_fault_condemns_none(rows: int) -> None:
    assert bisect_poison_rows(rows, Machine(set(), mishaps=1).survives) == ()
