"""The record of a run, published last of all; and what an output folder holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import uuid4

from wordmask.schemas.runs import Plan, Receipt, RunSummary, receipt_path
from wordmask.schemas.settings import Frozen, RunSettings
from wordmask.tasks.storage import Store

RECEIPTS_AT_ONCE = 16


class OutputStatus(Frozen):
    """What lies in an output: published runs, newest first, and shards that no published run names
    (yet).
    """

    runs: tuple[RunSummary, ...]
    shards: int
    unpublished: int


def new_run_id() -> str:
    """Microseconds: the newest run is found by name, also among runs of one second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid4().hex[:6]}"


def summarize(
    plan: Plan,
    settings: RunSettings,
    receipts: Sequence[Receipt],
    *,
    rows_left: int = 0,
    started_at: datetime,
    finished_at: datetime,
) -> RunSummary:
    """Add up the receipts of every shard of the plan, those of earlier runs too. `rows_left`: of
    shards that the budget did not reach."""
    seconds = (finished_at - started_at).total_seconds()
    computed = sum(shard.rows for shard in plan.pending)
    rejects = sum((Counter(receipt.rejects) for receipt in receipts), Counter())
    return RunSummary(
        run_id=plan.run_id,
        settings=settings,
        model_revision=plan.shards[0].model_revision if plan.shards else "",
        settings_hash=settings.segment.settings_hash,
        started_at=started_at.isoformat(timespec="seconds"),
        finished_at=finished_at.isoformat(timespec="seconds"),
        rows=sum(r.rows for r in receipts),
        rows_left=rows_left,
        masks=sum(r.masks for r in receipts),
        absent=sum(r.absent for r in receipts),
        rejects=dict(sorted(rejects.items())),
        shards=len(plan.shards),
        shards_computed=len(plan.pending),
        seconds=round(seconds, 3),
        rows_per_second=round(computed / seconds, 3) if seconds > 0 else 0.0,
        model_busy=round(
            _busy([receipt for receipt in receipts if receipt.shard.shard_id not in plan.done]), 4
        ),
        shard_ids=tuple(shard.shard_id for shard in plan.shards),
        masks_parts=tuple(receipt.masks_part for receipt in receipts),
        rejects_parts=tuple(receipt.rejects_part for receipt in receipts),
        files={shard.name: shard.fingerprint for shard in plan.shards},
    )


def _busy(receipts: list[Receipt]) -> float:
    infer, idle = (
        sum(receipt.timings.infer for receipt in receipts),
        sum(receipt.timings.idle for receipt in receipts),
    )
    return infer / (infer + idle) if infer else 0.0


def publish(output: Store, summary: RunSummary) -> None:
    """Make the run's shards visible to readers."""
    output.write_bytes(f"runs/{summary.run_id}.json", summary.model_dump_json(indent=1).encode())


def read_receipts(output: Store, shard_ids: Iterable[str]) -> list[Receipt]:
    """Receipts in the order asked for. Raises FileNotFoundError if one is missing."""
    with ThreadPoolExecutor(RECEIPTS_AT_ONCE) as pool:
        return list(
            pool.map(
                lambda shard_id: Receipt.model_validate_json(
                    output.read_bytes(receipt_path(shard_id))
                ),
                shard_ids,
            )
        )


def published_runs(output: Store) -> tuple[RunSummary, ...]:
    """Published runs, newest first."""
    return tuple(
        RunSummary.model_validate_json(output.read_bytes(f"runs/{name}.json"))
        for name in reversed(published_names(output))
    )


def status(output: Store) -> OutputStatus:
    """What an output holds. An empty or absent folder holds nothing."""
    runs = published_runs(output)
    receipts = output.names("receipts", ".json")
    named = {shard_id for run in runs for shard_id in run.shard_ids}
    return OutputStatus(runs=runs, shards=len(receipts), unpublished=len(receipts - named))


def published_names(output: Store) -> list[str]:
    """Names of published runs, newest last."""
    return sorted(output.names("runs", ".json"))


def newest_run(output: Store) -> RunSummary:
    """The newest published run: its shards are what a reader reads. Raises FileNotFoundError if
    nothing was published.
    """
    if (run := newest_run_if_any(output)) is None:
        raise FileNotFoundError(
            f"{output.root}: no published run there. Run `wordmask run` first, or check the path"
        )
    return run


def newest_run_if_any(output: Store) -> RunSummary | None:
    """The same, None if nothing was published."""
    names = published_names(output)
    return (
        RunSummary.model_validate_json(output.read_bytes(f"runs/{names[-1]}.json"))
        if names
        else None
    )
