"""Progress and results of runs and of training, for the terminal and as artifacts of Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from wordmask.schemas.runs import Plan, Receipt, RunSummary
from wordmask.tasks.telemetry.logs import logger, without_credentials

if TYPE_CHECKING:
    from wordmask.model.train.loop import OnProgress as OnTrainingProgress

ARTIFACT_SECONDS = 2.0  # between two updates of the progress artifact
# Between two attempts while Prefect is away: each takes time in which no shard is submitted.
OUTAGE_SECONDS = 60.0
LOG_ROWS = 200  # of a training stage's log in Prefect; its log.csv has all


@dataclass
class Progress:
    """Rows of a run that are done, and their speed.

    `vanished` are files of the newest published run that are gone. `done` counts rows of earlier
    runs too; `computed` counts those of this run since its workers are ready, and `started` is when
    they were (`time.monotonic`). `unfit` has the addresses of workers that get no shards, and why.
    """

    rows: int
    done: int = 0
    vanished: int = 0
    rejected: int = 0
    computed: int = 0
    started: float | None = None
    unfit: dict[str, str] = field(default_factory=dict)

    def plan(self, plan: Plan) -> None:
        """Take the rows of a plan, and those of them that are done."""
        self.rows = plan.rows
        self.done = plan.rows - sum(shard.rows for shard in plan.pending)
        self.vanished = plan.vanished.files

    def start(self) -> None:
        """Start the clock: the seconds in which workers start say nothing of the rows to come."""
        self.started = time.monotonic()

    def add(self, receipt: Receipt) -> None:
        """Count the rows of a shard that is done."""
        self.done += receipt.rows
        self.computed += receipt.rows
        self.rejected += receipt.rejected

    @property
    def rows_per_second(self) -> float:
        if self.started is None:
            return 0.0
        return self.computed / max(time.monotonic() - self.started, 1e-9)

    @property
    def percent(self) -> float:
        if not self.rows:
            return 100.0
        return 100.0 * self.done / self.rows

    def __str__(self) -> str:
        """Rows done, speed, rejects, time left."""
        done = f"{self.done:,}/{self.rows:,} rows"
        if self.unfit:
            done += f", workers unfit: {len(self.unfit)}"
        if self.vanished:
            done += f", {self.vanished:,} files gone"
        if self.started is None:
            return f"{done}, starting workers"
        if not self.computed:
            return done
        speed = self.rows_per_second
        left = (self.rows - self.done) / speed
        return f"{done}, {speed:.1f} rows/s, {self.rejected:,} rejected, {left:,.0f} s left"


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Report to nobody."""


class ArtifactApi:
    """Prefect's artifact functions for a run that goes on without Prefect.

    An error is logged, the first one only, and never raised.
    """

    def __init__(self) -> None:
        self._has_failed = False

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return what an artifact function returns, the artifact's id, or None if it failed."""
        try:
            return function(*args, **options)
        except Exception as error:
            if not self._has_failed:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("Prefect cannot be told", extra={"reason": reason})
            self._has_failed = True
            return None


class ProgressReporter:
    """Reports to a callback at every shard, and to a Prefect artifact every few seconds."""

    def __init__(self, progress: Progress, on_progress: OnProgress) -> None:
        self._progress = progress
        self._on_progress = on_progress
        self._prefect = ArtifactApi()
        self._artifact: Any = None
        self._due = 0.0  # the next update of the artifact, by `time.monotonic`

    def open(self) -> None:
        """Create the artifact and make the first report, before there are workers."""
        self._artifact = self._prefect.call(
            create_progress_artifact,
            progress=self._progress.percent,
            key="wordmask-progress",
            description=str(self._progress),
        )
        self._due = time.monotonic() + ARTIFACT_SECONDS
        self._on_progress(self._progress)

    def start(self) -> None:
        """Report that the workers are ready."""
        self._progress.start()
        self._report()

    def replanned(self, plan: Plan) -> None:
        """Report the rows of a plan that takes the place of the one before."""
        self._progress.plan(plan)
        self._report()

    def add(self, receipt: Receipt) -> None:
        """Report that a shard is done."""
        self._progress.add(receipt)
        self._report()

    def name_unfit(self, address: str, reason: str) -> None:
        """Report that a worker gets no shards."""
        self._progress.unfit[address] = without_credentials(reason)
        self._report()

    def _report(self) -> None:
        self._on_progress(self._progress)
        if self._artifact is None:
            return
        is_complete = self._progress.done == self._progress.rows
        if is_complete or time.monotonic() > self._due:
            self._update_artifact()

    def _update_artifact(self) -> None:
        updated = self._prefect.call(
            update_progress_artifact,
            self._artifact,
            progress=self._progress.percent,
            description=str(self._progress),
        )
        pause = OUTAGE_SECONDS if updated is None else ARTIFACT_SECONDS
        self._due = time.monotonic() + pause


def publish_artifacts(summary: RunSummary) -> None:
    """Publish a run's counts as a table, and what it was as a line of Markdown."""
    prefect = ArtifactApi()
    counts = {"rows": summary.rows, "masks": summary.masks, "absent": summary.absent}
    counts |= {f"rejected: {code}": rows for code, rows in summary.rejects.items()}
    table = [{"what": name, "rows": rows} for name, rows in counts.items()]
    prefect.call(create_table_artifact, table=table, key="wordmask-rows")
    settings = summary.settings
    text = (
        f"Run `{summary.run_id}` of `{settings.input}` with `{settings.model.model}`"
        f" ({summary.model_revision}): {summary.rows} rows in {summary.shards} shards,"
        f" {summary.seconds} s."
    )
    prefect.call(create_markdown_artifact, markdown=text, key="wordmask-run")


@contextmanager
def stage_artifacts(stage: str) -> Generator[OnTrainingProgress]:
    """Yield a callback that shows a training stage's progress in Prefect.

    The stage's log is published as a table when the stage ends or is stopped.
    """
    artifact = create_progress_artifact(progress=0.0, key=f"training-{stage}")
    assert isinstance(artifact, UUID)
    rows: list[dict[str, Any]] = []

    def on_progress(part: str, done: int, steps: int, means: Mapping[str, float]) -> None:
        rounded = {name: round(mean, 4) for name, mean in means.items()}
        rows.append({"part": part, "step": done} | rounded)
        update_progress_artifact(
            artifact,
            progress=100.0 * done / steps,
            description=f"{part}: step {done:,} of {steps:,}",
        )

    try:
        yield on_progress
    finally:
        if rows:
            create_table_artifact(
                rows[:: 1 + len(rows) // LOG_ROWS],
                key=f"training-{stage}-log",
                description="means since the row before",
            )
