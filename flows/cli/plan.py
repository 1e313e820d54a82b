"""The command that says what a run would do: plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wordmask.flows.cli.console import (
    complain,
    err,
    estimate_lines,
    out,
    print_json,
    two_columns,
    warn_of_files,
)
from wordmask.flows.cli.options import Fields, Json, settings_options
from wordmask.flows.cli.runs import RESUME
from wordmask.flows.prefect_api import configure, silence_libraries
from wordmask.schemas.commands import BudgetSettings
from wordmask.schemas.settings import RunSettings

if TYPE_CHECKING:
    from wordmask.schemas.runs import Plan, Receipt
    from wordmask.tasks.review.estimate import TimeEstimate
    from wordmask.tasks.review.nights import Nights

OfRun = Fields(
    without=("retries", "wait"),
    help={"workers": "Workers to tell the time of. Default: 1; a run's, to --calibrate."},
)
OfBudget = Fields(help={"budget": "Say in how many runs of this time or money the rest is done."})


@settings_options
def plan(
    settings: Annotated[RunSettings, OfRun],
    budget: Annotated[BudgetSettings, OfBudget],
    *,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Do a few shards first and time them. They are done then, and in no published"
            " run.",
        ),
    ] = False,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1, max=400, metavar="N", help="Answer N random rows and draw them on a sheet."
        ),
    ] = None,
    preview_sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="SHEET.png",
            help="Sheet of --preview. Default: OUTPUT-preview.png, for a URI in this folder.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the rows of --preview.")] = 0,
    json: Json = False,
) -> None:
    """Say what a run would do, how long it may take and what it may cost, without doing it.

    Give it the options that the run will have. Only footers and listings are read, and row ids. The
    time is told by shards of the output that were done before with the same model and settings;
    where there are none, by arithmetic, for GPUs. --calibrate and --preview do compute, a little.

    Examples:

    [bold]wordmask plan queries.parquet masks/[/bold]

    [bold]wordmask plan s3://lake/queries/ s3://lake/masks/ --calibrate --price-per-hour 3.50 \\
    --preview 12[/bold]
    """
    report = _make_report(settings, budget, calibrate)
    if preview is not None:
        drawn = _draw_preview(report.plan, report.settings, preview, seed, preview_sheet)
        report = replace(report, preview=drawn)
    if json:
        print_json(report.document())
    else:
        report.show()


@dataclass(frozen=True)
class _Report:
    """All that the command says. `preview`: the sheet's path and its rows."""

    settings: RunSettings
    plan: Plan
    counts: dict[str, Any]
    estimate: TimeEstimate | None
    nights: Nights | None
    preview: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON document for machines."""
        document = dict(self.counts)
        document["estimate"] = None
        if self.estimate is not None:
            document["estimate"] = self.estimate.model_dump(mode="json")
        if self.nights is not None:
            document["nights"] = self.nights.model_dump(mode="json")
        document["vanished"] = self.plan.vanished.model_dump(mode="json")
        document["unusable"] = [file.model_dump(mode="json") for file in self.plan.unusable]
        document["left_out"] = [each.model_dump(mode="json") for each in self.plan.left_out]
        if self.preview is not None:
            document["preview"] = self.preview
        return document

    def show(self) -> None:
        """Print the report for a person, and what is wrong with the input as errors."""
        rows = [(name.replace("_", " "), _text(value)) for name, value in self.counts.items()]
        if self.estimate is not None:
            rows += estimate_lines(self.estimate)
        if self.nights is not None:
            rows.append(("runs of the budget", _nights_text(self.nights)))
        if self.preview is not None:
            rows.append(("preview", self.preview["sheet"]))
        title = f"plan of {self.settings.input} → {self.settings.output}"
        out.print(two_columns(title, rows))
        if self.plan.vanished.files:
            line = Text.assemble(("gone since the newest run: ", "yellow"), str(self.plan.vanished))
            err.print(line, soft_wrap=True)
        what = "a run refuses this input"
        if self.settings.skip_bad_files:
            what = "a run leaves out a file that cannot be used"
        warn_of_files(self.plan.unusable, self.plan.left_out, what)


def _make_report(settings: RunSettings, budget: BudgetSettings, calibrate: bool) -> _Report:
    from wordmask.model.hub.registry import resolve_model
    from wordmask.tasks.output.catalog import newest_run_if_any
    from wordmask.tasks.plan import make_plan
    from wordmask.tasks.review.estimate import estimate_time
    from wordmask.tasks.review.nights import nights_left
    from wordmask.tasks.storage import Store

    model = settings.model
    store = Store.open(settings.output)
    source = resolve_model(model.model, refiner=model.refiner, revision=model.revision)
    made = make_plan(settings, source.revision, store, refuse=False)
    calibrated: list[Receipt] = []
    if calibrate and made.pending:
        calibrated, workers = _calibrate(made, settings)
        settings = settings.model_copy(update={"workers": settings.workers or workers})
        done = made.done | {receipt.shard.shard_id for receipt in calibrated}
        made = made.model_copy(update={"done": done})
    estimate = None
    if made.pending:
        price = budget.price_per_hour
        estimate = estimate_time(
            made, settings, source, store, calibrated=calibrated, price_per_hour=price
        )
    counts = made.counts()
    counts["model_revision"] = source.revision
    counts["settings_hash"] = settings.segment.settings_hash
    if calibrate:
        counts["rows_calibrated"] = sum(receipt.rows for receipt in calibrated)
    nights = None
    if budget.seconds is not None:
        newest = newest_run_if_any(store)
        nights = nights_left(made, settings, budget.seconds, newest, estimate)
    return _Report(settings, made, counts, estimate, nights)


def _nights_text(found: Nights) -> str:
    if found.nights is None:
        return f"unknown: {found.note}"
    return f"{found.nights:,}, {found.note}"


def _text(value: Any) -> str:
    if value is None:
        return "unknown: the footers do not tell"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        least, most = value
        if least == most:
            return f"{least:,}"
        return f"{least:,} to {most:,}"
    return str(value)


def _calibrate(plan: Plan, settings: RunSettings) -> tuple[list[Receipt], int]:
    """Return the receipts of a few shards done now, and the number of workers that did them."""
    configure(verbose=False)
    from wordmask.flows.execution.calibrate import calibrate

    silence_libraries()
    try:
        return calibrate(plan, settings)
    except KeyboardInterrupt:
        complain("stopped", RESUME)
        raise SystemExit(130) from None


def _draw_preview(
    plan: Plan, settings: RunSettings, count: int, seed: int, sheet: Path | None
) -> dict[str, Any]:
    """Answer some random rows and draw them on a sheet; return what the report says of it."""
    from wordmask.tasks.review.overlay import png_bytes
    from wordmask.tasks.review.preview import preview
    from wordmask.tasks.worker import load_segmenter

    segmenter = load_segmenter(settings.model, settings.segment)
    page, rows = preview(plan, settings, segmenter, count, seed)
    path = sheet or _default_sheet(settings.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(page))
    return {"sheet": str(path), "seed": seed, "rows": [dataclasses.asdict(row) for row in rows]}


def _default_sheet(output: str) -> Path:
    """Return a path beside a local output; for a URI, one in this folder."""
    from wordmask.tasks.storage import Store

    store = Store.open(output)
    root = store.root
    if not store.is_local:
        root = root.rsplit("/", 1)[-1]
    return Path(f"{root}-preview.png")
