"""The main flow: plan, dispatch, verify, summarise. Only their order is here; what they do is in
`tasks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from wordmask.flows.execution.cluster import TAKES_UP, open_cluster
from wordmask.flows.execution.dispatcher import StoreGoneError, run_shards
from wordmask.model.hub.registry import resolve_model
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Plan, Receipt, RunSummary
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import newest_run, publish, summarize
from wordmask.tasks.output.lease import acquire_lease
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.output.verify import VerifyReport, require, verify
from wordmask.tasks.plan import make_plan
from wordmask.tasks.storage import STORE_ERRORS, Store
from wordmask.tasks.telemetry import logs, traces
from wordmask.tasks.telemetry.logs import logger
from wordmask.tasks.worker import SEGMENTER

ARTIFACT_EVERY = 2.0  # seconds
# until Prefect is told again: to find that it is away takes time, in which no shard is sent
OUTAGE_SECONDS = 60.0
SHOWN = 10  # failed shards named in an error


class ShardsFailedError(RuntimeError):
    """Shards that could not be done. What was done has receipts: a further run takes up the
    rest.
    """


@dataclass
class Tally:
    """How far a run is. `done` counts rows of earlier runs too; `computed` only this one's, since
    the workers are ready.
    """

    rows: int
    done: int = 0
    rejected: int = 0
    computed: int = 0
    began: float | None = None

    def start(self) -> None:
        """Starting workers takes seconds that say nothing of the rows to come: the clock runs from
        here.
        """
        self.began = time.monotonic()

    def add(self, receipt: Receipt) -> None:
        self.done += receipt.rows
        self.computed += receipt.rows
        self.rejected += receipt.rejected

    @property
    def rows_per_second(self) -> float:
        return self.computed / max(time.monotonic() - self.began, 1e-9) if self.began else 0.0

    def __str__(self) -> str:
        """Rows done, speed, rejects, time left."""
        if self.began is None:
            return f"{self.done:,}/{self.rows:,} rows, starting workers"
        if not self.computed:
            return f"{self.done:,}/{self.rows:,} rows"
        left = (self.rows - self.done) / self.rows_per_second
        return (
            f"{self.done:,}/{self.rows:,} rows, {self.rows_per_second:.1f} rows/s,"
            f" {self.rejected:,} rejected, {left:,.0f} s left"
        )

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.rows if self.rows else 100.0


# Who is told of progress. A flow's parameters must be serialisable, and a callback is not.
watcher: ContextVar[Callable[[Tally], None] | None] = ContextVar("watcher", default=None)


@flow(name="segment", validate_parameters=True)
def segment(settings: RunSettings, factory: str = SEGMENTER) -> RunSummary:
    """Segment a whole table. Shards that have a receipt are skipped; the summary is published last,
    once all is done and verified: a run that its budget ended publishes nothing, so that readers
    keep the whole results of the run before."""
    return _carry_out(
        lambda: (plan_run(settings), settings), settings.output, settings.wait, factory
    )


@flow(name="retry", validate_parameters=True)
def retry(
    output: str,
    codes: tuple[RejectCode, ...],
    workers: int | None = None,
    scheduler: str | None = None,
    wait: bool = False,
    factory: str = SEGMENTER,
) -> RunSummary:
    """Try rows of the newest published run again that were rejected for one of `codes`, with the
    settings of that run. All other rows stay what they are, and the result is published as a run of
    its own."""
    newest_run(Store.open(output))  # that there is none is told before anything is written there

    def planned() -> tuple[Plan, RunSettings]:
        plan, settings = retry_plan(output, codes)
        return plan, settings.model_copy(
            update={
                "workers": workers,
                "scheduler": scheduler,
                "wait": wait,
                "budget_seconds": None,
            }
        )

    return _carry_out(planned, output, wait, factory)


def _carry_out(
    planned: Callable[[], tuple[Plan, RunSettings]], output: str, wait: bool, factory: str
) -> RunSummary:
    """Do what is planned when the output is held: another run that was waited for may have done it,
    or published what it starts from.
    """
    logs.set_up()
    traces.set_up()
    Store.open(output).check_writable()
    with (
        acquire_lease(output, wait=wait) as hold,
        traces.span("run", run_id=hold.run_id) as span,
        logs.log_context(run_id=hold.run_id),
    ):
        started = datetime.now(UTC)
        plan, settings = planned()
        plan = plan.model_copy(update={"run_id": hold.run_id})
        span.set_attributes({"rows": plan.rows})
        pending = sum(shard.rows for shard in plan.pending)
        logger.info(
            "planned",
            extra={
                "rows": plan.rows,
                "rows_done": plan.rows - pending,
                "shards_pending": len(plan.pending),
            },
        )
        reached = dispatch(plan, settings, factory) if plan.pending else plan
        with _store_at_fault():
            hold.require()
            receipts, left = verify_run(reached, settings).receipts, plan.rows - reached.rows
            summary = summarize(
                reached,
                settings,
                receipts,
                rows_left=left,
                started_at=started,
                finished_at=datetime.now(UTC),
            )
            if not summary.rows_left:
                hold.require()
                publish(summary, settings)
        counts = {
            "rows": summary.rows,
            "rows_left": summary.rows_left,
            "masks": summary.masks,
            "rejects": summary.rejects,
        }
        logger.info("finished", extra=counts | {"seconds": summary.seconds})
    _publish_artifacts(summary)
    return summary


@contextmanager
def _store_at_fault() -> Iterator[None]:
    """What a store raises tells of one request; here it says what that means for the run."""
    try:
        yield
    except STORE_ERRORS as error:
        raise StoreGoneError(
            "the store failed while the run was verified and published, with"
            f" {type(error).__name__}: {error}. {TAKES_UP}"
        ) from error


@task(name="plan", cache_policy=NO_CACHE)
@logs.redacted_errors()
def plan_run(settings: RunSettings) -> Plan:
    revision = resolve_model(
        settings.model.model, refiner=settings.model.refiner, revision=settings.model.revision
    ).revision
    return make_plan(settings, revision)


@task(name="dispatch", cache_policy=NO_CACHE)
@logs.redacted_errors()
def dispatch(plan: Plan, settings: RunSettings, factory: str = SEGMENTER) -> Plan:
    """Send the pending shards to workers and see each of them done. The plan of what the budget
    allowed.

    Raises:
        ShardsFailedError: some were not, after all retries; it says which and why.
    """
    done_before = sum(shard.rows for shard in plan.shards) - sum(
        shard.rows for shard in plan.pending
    )
    tally = Tally(rows=plan.rows, done=done_before)
    tell = _announce(tally)
    with open_cluster(settings, plan.shards[0].model_revision, factory) as client:
        tally.start()
        tell(tally)

        def done(receipt: Receipt) -> None:
            tally.add(receipt)
            tell(tally)

        outcome = run_shards(client, plan.pending, settings, done, plan.hints, plan.run_id)
    if failures := outcome.failures:
        lines = [f"{shard.label}: {reason}" for shard, reason in failures[:SHOWN]]
        more = [f"... and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
        what = (
            f"{len(failures)} of {len(plan.pending)} shards failed; the rest are done, and the same"
            " command takes up these:"
        )
        raise ShardsFailedError("\n".join([what, *lines, *more]))
    return plan.without(outcome.left)


@task(name="verify", cache_policy=NO_CACHE)
@logs.redacted_errors()
def verify_run(plan: Plan, settings: RunSettings) -> VerifyReport:
    report = verify(plan, settings)
    require(report)
    return report


class _Prefect:
    """What is told to Prefect, without which a run goes on: that it cannot be told is logged
    once.
    """

    def __init__(self) -> None:
        self._fails = False

    def tell(self, how: Callable[..., Any], *args: Any, **what: Any) -> Any:
        """Of an artifact. Its id, or None if that failed."""
        try:
            return how(*args, **what)
        except Exception as error:
            if not self._fails:
                logger.warning(
                    "Prefect cannot be told", extra={"reason": f"{type(error).__name__}: {error}"}
                )
            self._fails = True
            return None


def _announce(tally: Tally) -> Callable[[Tally], None]:
    """Tell the terminal of every shard, and Prefect now and then."""
    watch, prefect = watcher.get(), _Prefect()
    artifact = prefect.tell(
        create_progress_artifact,
        progress=tally.percent,
        key="wordmask-progress",
        description=str(tally),
    )
    due = time.monotonic() + ARTIFACT_EVERY

    def tell(now: Tally) -> None:
        nonlocal due
        if watch is not None:
            watch(now)
        if artifact is not None and (now.done == now.rows or time.monotonic() > due):
            told = prefect.tell(
                update_progress_artifact, artifact, progress=now.percent, description=str(now)
            )
            due = time.monotonic() + (ARTIFACT_EVERY if told is not None else OUTAGE_SECONDS)

    if watch is not None:
        watch(tally)
    return tell


def _publish_artifacts(summary: RunSummary) -> None:
    counts = {
        "rows": summary.rows,
        "masks": summary.masks,
        "absent": summary.absent,
        **{f"rejected: {k}": v for k, v in summary.rejects.items()},
    }
    prefect = _Prefect()
    prefect.tell(
        create_table_artifact,
        table=[{"what": name, "rows": count} for name, count in counts.items()],
        key="wordmask-rows",
    )
    settings = summary.settings
    text = (
        f"Run `{summary.run_id}` of `{settings.input}` with `{settings.model.model}`"
        f" ({summary.model_revision}): {summary.rows} rows in {summary.shards} shards,"
        f" {summary.seconds} s."
    )
    prefect.tell(create_markdown_artifact, markdown=text, key="wordmask-run")
