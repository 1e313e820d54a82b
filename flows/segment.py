"""The main flow: plan, dispatch, verify, publish.

Only the order of the steps is here; the steps themselves are in `tasks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from prefect import Flow, flow, task
from prefect.cache_policies import NO_CACHE

from wordmask.flows.execution.budget import Budget
from wordmask.flows.execution.cluster import RESUME_HINT, open_cluster
from wordmask.flows.execution.dispatcher import Dispatcher, Outcome, StoreGoneError
from wordmask.flows.execution.rounds import require_few_gaps, run_rounds
from wordmask.flows.reporting import (
    OnProgress,
    Progress,
    ProgressReporter,
    ignore_progress,
    publish_artifacts,
)
from wordmask.model.hub.registry import resolve_model
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Plan, RunSummary, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.losses import look_again, settle
from wordmask.tasks.output.catalog import newest_run, newest_run_if_any, publish
from wordmask.tasks.output.lease import LeaseHandle, acquire_lease
from wordmask.tasks.output.manifests import write_manifests
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.output.summary import summarize
from wordmask.tasks.output.verify import VerifyReport, require, verify
from wordmask.tasks.plan import make_plan
from wordmask.tasks.storage import STORE_ERRORS, Store
from wordmask.tasks.telemetry import logs, traces
from wordmask.tasks.telemetry.logs import logger
from wordmask.tasks.worker import SEGMENTER


def segment_flow(
    on_progress: OnProgress = ignore_progress, began: float | None = None
) -> Flow[..., RunSummary]:
    """Return the flow `segment` that reports its progress to a callback.

    Prefect stores the parameters of a flow run. A callback cannot be stored, so it is bound here.

    Args:
        on_progress: the callback.
        began: when the command began that the budget counts from (`time.monotonic`). Default: the
            flow's start.
    """

    @flow(name="segment", validate_parameters=True)
    def segment(settings: RunSettings, factory: str = SEGMENTER) -> RunSummary:
        """Segment a whole table.

        Shards that have a receipt are skipped. The summary is published last, once all is done and
        verified: a run that its budget ended publishes nothing, so that readers keep the whole
        results of the run before.
        """
        output = Store.open(settings.output)
        budget = Budget(settings.budget_seconds, began)

        def planner() -> tuple[Plan, RunSettings]:
            return plan_run(settings, output), settings

        def replan(revision: str) -> Plan:
            return make_plan(settings, revision, output)

        return _run(planner, output, settings.wait, factory, on_progress, budget, replan)

    return segment


def retry_flow(on_progress: OnProgress = ignore_progress) -> Flow[..., RunSummary]:
    """Return the flow `retry` that reports its progress to a callback."""

    @flow(name="retry", validate_parameters=True)
    def retry(
        output: str,
        codes: tuple[RejectCode, ...],
        workers: int | None = None,
        scheduler: str | None = None,
        wait: bool = False,
        factory: str = SEGMENTER,
    ) -> RunSummary:
        """Try rows of the newest published run again that were rejected for one of `codes`.

        The settings are those of that run. All other rows stay what they are, and the result is
        published as a run of its own.
        """
        store = Store.open(output)
        newest_run(store)  # its absence is an error before anything is written there
        execution = {
            "output": output,
            "workers": workers,
            "scheduler": scheduler,
            "wait": wait,
            "budget_seconds": None,
            "max_gaps": 0,
        }

        def planner() -> tuple[Plan, RunSettings]:
            plan, settings = retry_plan(store, codes)
            return plan, settings.model_copy(update=execution)

        return _run(planner, store, wait, factory, on_progress, Budget())

    return retry


segment = segment_flow()  # the entry point of deployments
retry = retry_flow()


def _run(
    planner: Callable[[], tuple[Plan, RunSettings]],
    output: Store,
    wait: bool,
    factory: str,
    on_progress: OnProgress,
    budget: Budget,
    replan: Callable[[str], Plan] | None = None,
) -> RunSummary:
    """Plan and carry out a run while it has the output's lease.

    The plan is made only then: a run that was waited for may have done the work, or published what
    the plan starts from. Where the input changes meanwhile, `replan` plans it anew, with the model
    of a revision: workers have no other.
    """
    logs.set_up()
    traces.set_up()
    output.check_writable()
    with (
        acquire_lease(output, wait=wait, patience=budget.seconds_left) as lease,
        traces.span("run", run_id=lease.run_id) as span,
        logs.log_context(run_id=lease.run_id),
    ):
        started_at = datetime.now(UTC)
        budget.keep_back(_seconds_of_last_verification(output))
        plan, settings = planner()
        plan = plan.model_copy(update={"run_id": lease.run_id, "fence": lease.fence})
        span.set_attributes({"rows": plan.rows})
        _log_planned(plan)

        reached = Dispatched(plan, 0)
        if plan.pending:
            again = None
            if replan is not None:
                again = partial(_replan, replan, plan)
            control = Control(lease.check, budget, again)
            reached = dispatch(plan, settings, factory, on_progress, control)
        with _store_errors_explained():
            summary = _verify_and_publish(reached, settings, output, lease, started_at)
        _log_finished(summary)
    publish_artifacts(summary)
    return summary


def _replan(replan: Callable[[str], Plan], plan: Plan) -> Plan:
    """Return the plan of the same run over the input as it is now."""
    of_run = {"run_id": plan.run_id, "fence": plan.fence}
    return replan(plan.model_revision).model_copy(update=of_run)


def _verify_and_publish(
    reached: Dispatched,
    settings: RunSettings,
    output: Store,
    lease: LeaseHandle,
    started_at: datetime,
) -> RunSummary:
    """Verify what was reached, and publish it unless the budget left something."""
    lease.require()
    began = time.monotonic()
    plan, rows_left = reached
    report = verify_run(plan, output, is_whole=not rows_left)
    summary = summarize(
        plan,
        settings,
        report.files,
        rows_left=rows_left,
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
    if rows_left:
        return summary
    vanished = look_again(plan, settings, output)
    index = write_manifests(output, report.files, plan.fence)
    took = round(time.monotonic() - began, 3)
    written = {"index": index, "verify_seconds": took, "vanished": vanished}
    summary = summary.model_copy(update=written)
    lease.require()
    publish(output, summary)
    return summary


def _seconds_of_last_verification(output: Store) -> float:
    newest = newest_run_if_any(output)
    if newest is None:
        return 0.0
    return newest.verify_seconds


def _log_planned(plan: Plan) -> None:
    counts = {
        "rows": plan.rows,
        "rows_done": plan.rows - _rows(plan.pending),
        "shards_pending": len(plan.pending),
        "files_skipped": len(plan.unusable),
        "files_left_out": sum(each.files for each in plan.left_out),
    }
    if plan.image_check is not None:
        counts["images_checked"] = plan.image_check.requests
        counts["images_unanswered"] = plan.image_check.unanswered
        counts["shards_with_changed_images"] = plan.image_check.shards
    logger.info("planned", extra=counts)


def _log_finished(summary: RunSummary) -> None:
    counts = {
        "rows": summary.rows,
        "rows_left": summary.rows_left,
        "rows_in_gaps": summary.rows_in_gaps,
        "files_kept": len(summary.kept),
        "files_vanished": summary.vanished.files,
        "masks": summary.masks,
        "rejects": summary.rejects,
        "seconds": summary.seconds,
    }
    logger.info("finished", extra=counts)


def _rows(shards: Sequence[Shard]) -> int:
    return sum(shard.rows for shard in shards)


@contextmanager
def _store_errors_explained() -> Generator[None]:
    """Raise a store's errors as StoreGoneError, which says what they mean for the run."""
    try:
        yield
    except STORE_ERRORS as error:
        raise StoreGoneError(
            "the store failed while the run was verified and published, with"
            f" {type(error).__name__}: {error}. {RESUME_HINT}"
        ) from error


@task(name="plan", cache_policy=NO_CACHE)
@logs.redacted_errors()
def plan_run(settings: RunSettings, output: Store) -> Plan:
    """Return the plan of a run, made with the model's present revision."""
    model = settings.model
    found = resolve_model(model.model, refiner=model.refiner, revision=model.revision)
    return make_plan(settings, found.revision, output)


class Control(NamedTuple):
    """What ends or changes a run from outside.

    `check` raises when the output was taken over, and is called all the time. `replan` plans the
    input as it is now; None: the run is not about that.
    """

    check: Callable[[], None]
    budget: Budget
    replan: Callable[[], Plan] | None = None


class Dispatched(NamedTuple):
    """The plan of what is to be published, and the rows that the budget did not reach."""

    plan: Plan
    rows_left: int


@task(name="dispatch", cache_policy=NO_CACHE)
@logs.redacted_errors()
def dispatch(
    plan: Plan,
    settings: RunSettings,
    factory: str,
    on_progress: OnProgress,
    control: Control,
) -> Dispatched:
    """Have workers do the pending shards, and say what there is to publish.

    Raises:
        LeaseLostError: the output was taken over.
        ShardsFailedError: shards with more rows than may be left out failed after all retries; it
            says which and why.
    """
    if not control.budget.allows_another:
        return Dispatched(plan.without(plan.pending), _rows(plan.pending))
    progress = Progress(rows=plan.rows)
    progress.plan(plan)
    reporter = ProgressReporter(progress, on_progress)
    reporter.open()
    revision = plan.shards[0].model_revision
    with open_cluster(settings, revision, factory, reporter.name_unfit) as client:
        reporter.start()

        def run(plan: Plan) -> Outcome:
            dispatcher = Dispatcher(
                client,
                settings,
                reporter.add,
                plan.hints,
                plan.run_id,
                plan.fence,
                control.check,
                control.budget,
            )
            return dispatcher.run(plan.pending, reporter.name_unfit)

        done, outcome = run_rounds(plan, run, control.replan, reporter.replanned)
    output = Store.open(settings.output)
    with _store_errors_explained():
        settled = settle(done, outcome.failures, outcome.changed_files, output)
    kept = {file.name for file in settled.kept}
    failed = [gap for gap in settled.gaps if gap not in done.gaps and gap.name not in kept]
    require_few_gaps(failed, settings.max_gaps, len(plan.pending))
    reached = settled.without(outcome.left)
    return Dispatched(reached, settled.rows - reached.rows)


@task(name="verify", cache_policy=NO_CACHE)
@logs.redacted_errors()
def verify_run(plan: Plan, output: Store, *, is_whole: bool = True) -> VerifyReport:
    """Return the report of what was verified, with the receipts.

    Raises:
        AccountingError: a row was lost or doubled.
    """
    report = verify(plan, output, is_whole=is_whole)
    require(report)
    return report
