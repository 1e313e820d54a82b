"""A budget is one deadline from the command's start, with time kept back for verification.

On 117a9f2 its clock started when workers were ready, and nothing was kept back.
"""

from __future__ import annotations

import time

import pytest

from wordmask.flows.execution.budget import Budget, BudgetSpentError


def test_without_seconds_there_is_no_limit() -> None:
    budget = Budget(None, time.monotonic() - 1e6)
    budget.keep_back(1e6)
    assert (budget.allows_another, budget.seconds_left) == (True, None)


def test_what_went_before_counts() -> None:
    assert Budget(3600.0).allows_another
    spent = Budget(3600.0, time.monotonic() - 3601)
    assert (spent.allows_another, spent.seconds_left) == (False, 0.0)
    with pytest.raises(BudgetSpentError):
        spent.require()


@pytest.mark.parametrize(("kept_back", "longest", "allows"), [(1800, 0, True), (1800, 1900, False)])
def test_the_time_of_verification_and_of_a_shard_is_kept_back(
    kept_back: float, longest: float, allows: bool
) -> None:
    budget = Budget(3600.0)
    budget.keep_back(kept_back)
    budget.record(longest)
    assert budget.allows_another is allows
