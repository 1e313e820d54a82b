"""Rounds of a run: files that change while it is under way are planned anew, a few times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wordmask.flows.execution.dispatcher import Outcome
from wordmask.schemas.losses import Gap
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan
from wordmask.tasks.storage import STORE_ERRORS
from wordmask.tasks.telemetry.logs import logger

FAILURES_SHOWN = 10  # failed shards named in an error
REPLANS = 2  # of a run: a file that changes all the time would never be done


class ShardsFailedError(RuntimeError):
    """Shards failed after all retries. What was done has receipts: a further run does the rest."""


def run_rounds(
    plan: Plan,
    run: Callable[[Plan], Outcome],
    replan: Callable[[], Plan] | None,
    on_replan: Callable[[Plan], object] = lambda _: None,
) -> tuple[Plan, Outcome]:
    """Carry out a plan, and plan the input anew while files of it changed.

    Args:
        plan: the plan.
        run: carries out the pending shards of a plan.
        replan: plans the input as it is now; None where a run is not about the input as it is.
        on_replan: called with each such plan.

    Returns:
        The plan that was carried out last, and what came of it.
    """
    outcome = run(plan)
    done = set(outcome.done)
    for _ in range(REPLANS):
        if replan is None or outcome.left or not outcome.changed_files:
            break
        logger.warning("planned anew", extra={"changed_files": sorted(outcome.changed_files)[:10]})
        try:
            plan = _without_work_on(replan(), done)
        except (InputError, *STORE_ERRORS) as error:  # a file is half written, or gone by now
            logger.warning("cannot be planned anew", extra={"reason": str(error)})
            break
        on_replan(plan)
        outcome = run(plan)
        done |= outcome.done
    if outcome.left:
        _leave_changed_files(outcome)
    # What this run did was not done before, as a plan that was made later has it.
    return plan.model_copy(update={"done": plan.done - done}), outcome


def _leave_changed_files(outcome: Outcome) -> None:
    """Leave files that changed to the next run, too, where the budget left something."""
    changed = [shard for shard, _ in outcome.failures if shard.name in outcome.changed_files]
    outcome.left += changed
    outcome.failures = [each for each in outcome.failures if each[0] not in changed]
    outcome.changed_files.clear()


def _without_work_on(plan: Plan, done: set[str]) -> Plan:
    """Return a plan in which shards that this run did are done, whatever its settings ask for."""
    own = done.intersection(shard.shard_id for shard in plan.shards)
    return plan.model_copy(update={"done": plan.done | own, "published": plan.published - own})


def require_few_gaps(gaps: Sequence[Gap], most_rows: int, pending: int) -> None:
    """Check that shards with no more rows failed than a run may be published without.

    Args:
        gaps: the shards that failed.
        most_rows: that may be left out.
        pending: shards that were to be done.

    Raises:
        ShardsFailedError: more did.
    """
    rows = sum(gap.rows for gap in gaps)
    if rows <= most_rows:
        return
    lines = [
        f"{len(gaps)} of {pending} shards failed; the rest are done, and the same command takes up"
        " these:",
        *map(str, gaps[:FAILURES_SHOWN]),
    ]
    hidden = len(gaps) - FAILURES_SHOWN
    if hidden > 0:
        lines.append(f"... and {hidden} more")
    lines.append(
        f"Nothing was published. --max-gaps {rows} would publish the rest without these {rows:,}"
        f" rows, and name them; the limit is {most_rows:,}"
    )
    raise ShardsFailedError("\n".join(lines))
