"""The steps of a run before and after its shards, as the flow takes them."""

from __future__ import annotations

from datetime import UTC, datetime

from wordmask.schemas.runs import Plan, RunSummary
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import publish, read_receipts
from wordmask.tasks.output.summary import summarize
from wordmask.tasks.output.verify import require, verify
from wordmask.tasks.plan import make_plan
from wordmask.tasks.storage import Store


def plan_of(settings: RunSettings, revision: str, *, refuse: bool = True) -> Plan:
    """Return the plan of a run with these settings."""
    return make_plan(settings, revision, Store.open(settings.output), refuse=refuse)


def require_every_row_once(plan: Plan, settings: RunSettings) -> None:
    """Raise unless each planned row ended as exactly one mask or reject."""
    require(verify(plan, Store.open(settings.output)))


def publish_run(plan: Plan, settings: RunSettings) -> RunSummary:
    """Publish a run whose shards are done, begun and finished now."""
    output, now = Store.open(settings.output), datetime.now(UTC)
    receipts = read_receipts(output, (shard.shard_id for shard in plan.shards))
    summary = summarize(plan, settings, receipts, started_at=now, finished_at=now)
    publish(output, summary)
    return summary
