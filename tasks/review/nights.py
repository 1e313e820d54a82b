"""In how many runs of a budget the rest of a plan is done."""

from __future__ import annotations

import math

from wordmask.schemas.runs import Plan, RunSummary
from wordmask.schemas.settings import Frozen, RunSettings
from wordmask.tasks.review.estimate import TimeEstimate


class Nights(Frozen):
    """How many runs it takes, and what that follows from.

    `nights` is None where the speed is not known, or the budget leaves no time for rows.
    """

    nights: int | None
    note: str


def nights_left(
    plan: Plan,
    settings: RunSettings,
    budget_seconds: float,
    newest: RunSummary | None,
    estimate: TimeEstimate | None,
) -> Nights:
    """Return in how many runs of a budget the pending rows are done.

    The speed is that of the newest published run, with all that it did beside its rows. Where it
    had another model or other settings, or computed too little, the estimate's is taken.

    Args:
        plan: the plan.
        settings: its settings.
        budget_seconds: of each run.
        newest: the newest published run, if there is one.
        estimate: of the seconds that the pending rows take.
    """
    rows = sum(shard.rows for shard in plan.pending)
    if rows == 0:
        return Nights(nights=0, note="nothing is left to do")
    kept_back = 0.0
    if newest is not None:
        kept_back = newest.verify_seconds
    useful = budget_seconds - kept_back
    if useful <= 0:
        note = f"the last run's verification took {kept_back:.0f} s, all of the budget: raise it"
        return Nights(nights=None, note=note)
    if newest is not None and _is_comparable(newest, plan, settings):
        seconds = rows / newest.rows_per_second
        return Nights(nights=math.ceil(seconds / useful), note="at the speed of the newest run")
    if estimate is None or not estimate.rates or estimate.rates[0].seconds is None:
        return Nights(nights=None, note="the speed is not known; --calibrate finds it")
    seconds = estimate.rates[0].seconds
    return Nights(nights=math.ceil(seconds / useful), note=f"at the speed of {estimate.basis}")


def _is_comparable(newest: RunSummary, plan: Plan, settings: RunSettings) -> bool:
    same = (newest.model_revision, newest.settings_hash)
    if same != (plan.model_revision, settings.segment.settings_hash):
        return False
    return newest.shards_computed > 0 and newest.rows_per_second > 0
