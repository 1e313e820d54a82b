"""The summary of a run: what was verified, added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from wordmask.schemas.runs import Plan, Receipt, RunSummary
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.manifests import FileRecords, add_counts

SKIPPED_NAMED = 100  # bad files that a run names: its head grows with no table


def summarize(
    plan: Plan,
    settings: RunSettings,
    files: Sequence[FileRecords],
    *,
    rows_left: int = 0,
    started_at: datetime,
    finished_at: datetime,
) -> RunSummary:
    """Return the summary of a run.

    Args:
        plan: the shards of the run.
        settings: the run's settings.
        files: what was verified of every input file of the plan.
        rows_left: rows of the input that the budget did not reach.
        started_at: when the run began.
        finished_at: when its last shard was verified.
    """
    seconds = (finished_at - started_at).total_seconds()
    entries = [file.entry for file in files]
    return RunSummary(
        run_id=plan.run_id,
        fence=plan.fence,
        settings=settings,
        model_revision=plan.model_revision,
        method_version=plan.method_version,
        settings_hash=settings.segment.settings_hash,
        started_at=started_at.isoformat(timespec="seconds"),
        finished_at=finished_at.isoformat(timespec="seconds"),
        input_files=len(entries),
        rows=sum(entry.rows for entry in entries),
        rows_left=rows_left,
        rows_in_gaps=sum(gap.rows for gap in plan.gaps),
        gaps=plan.gaps,
        kept=plan.kept,
        vanished=plan.vanished,
        masks=sum(entry.masks for entry in entries),
        absent=sum(entry.absent for entry in entries),
        rejects=add_counts(entry.rejects for entry in entries),
        shards=len(plan.shards),
        shards_computed=len(plan.pending),
        seconds=round(seconds, 3),
        rows_per_second=_rows_per_second(plan, seconds),
        model_busy=_model_busy(_computed(plan, files)),
        files_skipped=len(plan.unusable),
        skipped=plan.unusable[:SKIPPED_NAMED],
        left_out=plan.left_out,
    )


def _computed(plan: Plan, files: Iterable[FileRecords]) -> Iterator[Receipt]:
    """Yield the receipts of the shards that the run computed itself."""
    for file in files:
        for record in file.records:
            if isinstance(record, Receipt) and record.shard.shard_id not in plan.done:
                yield record


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
