"""The summary of a run: its receipts, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from wordmask.schemas.runs import Plan, Receipt, RunSummary
from wordmask.schemas.settings import RunSettings


def summarize(
    plan: Plan,
    settings: RunSettings,
    receipts: Sequence[Receipt],
    *,
    rows_left: int = 0,
    started_at: datetime,
    finished_at: datetime,
) -> RunSummary:
    """Return the summary of a run.

    Args:
        plan: the shards of the run.
        settings: the run's settings.
        receipts: those of every shard of the plan, in its order; also of shards done earlier.
        rows_left: rows of the input that the budget did not reach.
        started_at: when the run began.
        finished_at: when its last shard was verified.
    """
    seconds = (finished_at - started_at).total_seconds()
    computed = [receipt for receipt in receipts if receipt.shard.shard_id not in plan.done]
    return RunSummary(
        run_id=plan.run_id,
        settings=settings,
        model_revision=plan.model_revision,
        method_version=plan.method_version,
        settings_hash=settings.segment.settings_hash,
        started_at=started_at.isoformat(timespec="seconds"),
        finished_at=finished_at.isoformat(timespec="seconds"),
        rows=sum(receipt.rows for receipt in receipts),
        rows_left=rows_left,
        masks=sum(receipt.masks for receipt in receipts),
        absent=sum(receipt.absent for receipt in receipts),
        rejects=_rejects_by_code(receipts),
        shards=len(plan.shards),
        shards_computed=len(plan.pending),
        seconds=round(seconds, 3),
        rows_per_second=_rows_per_second(plan, seconds),
        model_busy=_model_busy(computed),
        shard_ids=tuple(shard.shard_id for shard in plan.shards),
        masks_parts=tuple(receipt.masks_part for receipt in receipts),
        rejects_parts=tuple(receipt.rejects_part for receipt in receipts),
        files={shard.name: shard.fingerprint for shard in plan.shards},
    )


def _rejects_by_code(receipts: Iterable[Receipt]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt.rejects)
    return dict(sorted(total.items()))


def _rows_per_second(plan: Plan, seconds: float) -> float:
    if seconds <= 0:
        return 0.0
    rows = sum(shard.rows for shard in plan.pending)
    return round(rows / seconds, 3)


def _model_busy(receipts: Iterable[Receipt]) -> float:
    """Return the share of the time in which the models were busy, 0..1."""
    infer = idle = 0.0
    for receipt in receipts:
        infer += receipt.timings.infer
        idle += receipt.timings.idle
    if infer == 0:
        return 0.0
    return round(infer / (infer + idle), 4)
