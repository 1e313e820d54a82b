"""The steps of a run as the flow takes them, with a fake model."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.fakes import REVISION, Counting, FakeSegmenter
from tests.support.tables import png, write_input
from wordmask.schemas.runs import Plan, Receipt, RunSummary
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output.catalog import next_run_id, publish
from wordmask.tasks.output.manifests import write_manifests
from wordmask.tasks.output.summary import summarize
from wordmask.tasks.output.verify import require, verify
from wordmask.tasks.plan import make_plan
from wordmask.tasks.shard import NO_HINTS, process_shard
from wordmask.tasks.storage import Store

GOOD = {"image": png(1), "query": "a thing"}


def settings_for(folder: Path, rows: list[dict[str, Any]], **options: Any) -> RunSettings:
    """Write a table of rows, and return the settings of a run over it."""
    write_input(folder / "in.parquet", rows)
    return RunSettings.model_validate(
        {"input": str(folder / "in.parquet"), "output": str(folder / "out"), **options}
    )


def run_all(settings: RunSettings) -> Plan:
    """Process the pending shards of a run with a fake model, and return its plan."""
    plan = plan_of(settings, REVISION)
    for shard in plan.pending:
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    return plan


def compute(plan: Plan, settings: RunSettings, model: FakeSegmenter | None = None) -> list[Receipt]:
    """Process the pending shards of a plan under the number of its lease."""
    context = ShardContext(model or FakeSegmenter())
    return [
        process_shard(
            shard, settings, context, plan.hints.get(shard.shard_id, NO_HINTS), plan.fence
        )
        for shard in plan.pending
    ]


def compute_again(plan: Plan, settings: RunSettings) -> list[Receipt]:
    """Process all shards of a plan once more, as a worker does that the run gave up."""
    return compute(plan.model_copy(update={"done": frozenset(), "hints": {}}), settings)


def carry_out(plan: Plan, settings: RunSettings) -> tuple[list[str], list[Receipt]]:
    """The words that the model was asked about in a run, and the receipts."""
    model = Counting()
    receipts = compute(plan, settings, model)
    require_every_row_once(plan, settings)
    publish_run(plan, settings)
    return model.asked, receipts


def plan_of(settings: RunSettings, revision: str, *, refuse: bool = True) -> Plan:
    """Return the plan of a run with these settings."""
    return make_plan(settings, revision, Store.open(settings.output), refuse=refuse)


def require_every_row_once(plan: Plan, settings: RunSettings) -> None:
    """Raise unless each planned row ended as exactly one mask or reject."""
    require(verify(plan, Store.open(settings.output)))


def publish_run(plan: Plan, settings: RunSettings) -> RunSummary:
    """Publish a run whose shards are done, begun and finished now."""
    output, now = Store.open(settings.output), datetime.now(UTC)
    plan = plan.model_copy(update={"run_id": next_run_id(output)})
    files = verify(plan, output).files
    summary = summarize(plan, settings, files, started_at=now, finished_at=now)
    summary = summary.model_copy(update={"index": write_manifests(output, files, plan.fence)})
    publish(output, summary)
    return summary
