"""What the command line prints: errors, progress, tables."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wordmask.tasks.telemetry.inherited import telemetry_settings
from wordmask.tasks.telemetry.logs import logger, without_credentials

if TYPE_CHECKING:
    from wordmask.flows.reporting import OnProgress
    from wordmask.flows.reporting import Progress as RunProgress
    from wordmask.model.costs.roofline import Costs
    from wordmask.schemas.losses import LeftOut, Unusable
    from wordmask.schemas.runs import RunSummary
    from wordmask.tasks.output.results import Rejected
    from wordmask.tasks.review.estimate import Rate, TimeEstimate

LOG_EVERY = 30.0  # seconds
LOSSES_SHOWN = 5  # files and gaps of a run
UNUSABLE_SHOWN = 10  # files

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def complain(kind: str, message: str) -> None:
    """Print one line on the error stream, without credentials: as JSON where logs are JSON."""
    message = without_credentials(message)
    if telemetry_settings().log_json:
        logger.error(message, extra={"kind": kind})
        return
    err.print(Text.assemble((f"{kind}: ", "bold red"), message), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document, without colour or wrapping, for machines."""
    print(json.dumps(value, indent=1, default=str))


def counted(number: int, noun: str) -> str:
    """Return "1 shard" or "2,000 shards"."""
    ending = "s"
    if number == 1:
        ending = ""
    return f"{number:,} {noun}{ending}"


def two_columns(title: str, rows: list[tuple[str, str]]) -> Group:
    """Return a title above rows of names and values."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return Group(Text(title, style="bold"), table)


def summary_table(summary: RunSummary) -> Group:
    """Return what a run did."""
    done_before = summary.shards - summary.shards_computed
    rows = [
        ("rows", f"{summary.rows:,}"),
        ("masks", f"{summary.masks - summary.absent:,}"),
        ("absent", f"{summary.absent:,}"),
        ("rejected", f"{sum(summary.rejects.values()):,}"),
    ]
    rows += [(f"  {code}", f"{count:,}") for code, count in summary.rejects.items()]
    shards = f"{summary.shards_computed:,} computed now, {done_before:,} done before"
    rows.append(("shards", f"{summary.shards:,} ({shards})"))
    if summary.rows_left:
        rows.append(("rows left", _rows_left(summary)))
    rows += _loss_lines(summary)
    if summary.files_skipped:
        rows.append(("files skipped", f"{summary.files_skipped:,}"))
    if summary.left_out:
        rows.append(("files left out", f"{sum(each.files for each in summary.left_out):,}"))
    rows.append(("time", f"{summary.seconds:.1f} s, {summary.rows_per_second:.1f} rows/s"))
    if summary.model_busy:
        rows.append(("model busy", f"{summary.model_busy:.1%} of the time"))
    rows.append(("model", f"{summary.settings.model.model} ({summary.model_revision})"))
    return two_columns(f"run {summary.run_id}", rows)


def _rows_left(summary: RunSummary) -> str:
    """Return how many rows a budget left, and in how many such runs they are done."""
    text = f"{summary.rows_left:,}; nothing was published, and the same command takes them up"
    rows = summary.rows_per_second * summary.seconds
    if rows < 1:
        return f"{text}. There was no time for a row: raise the budget"
    return f"{text}, in {counted(math.ceil(summary.rows_left / rows), 'run')} of this speed"


def _loss_lines(summary: RunSummary) -> list[tuple[str, str]]:
    """Return what a run lacks of its input, and says so."""
    lines = []
    if summary.vanished.files:
        lines.append(("vanished", str(summary.vanished)))
    if summary.kept:
        names = ", ".join(file.name for file in summary.kept[:LOSSES_SHOWN])
        rows = counted(sum(file.rows for file in summary.kept), "row")
        files = counted(len(summary.kept), "file")
        text = f"{files} with {rows} as the run before had them, as they kept changing: {names}"
        lines.append(("kept", text))
    if summary.gaps:
        rows = counted(summary.rows_in_gaps, "row")
        lines.append(("gaps", f"{rows} in {counted(len(summary.gaps), 'shard')} that failed"))
    lines += [("", str(gap)) for gap in summary.gaps[:LOSSES_SHOWN]]
    return lines


def warn_of_files(unusable: Sequence[Unusable], left_out: Iterable[LeftOut], what: str) -> None:
    """Print on the error stream which files of an input are not read, and why.

    Args:
        unusable: files that cannot be used.
        left_out: what else lies in the input.
        what: says what became of a file that cannot be used.
    """
    for file in unusable[:UNUSABLE_SHOWN]:
        err.print(Text.assemble((f"{what}: ", "yellow"), file.why), soft_wrap=True)
    if len(unusable) > UNUSABLE_SHOWN:
        more = counted(len(unusable) - UNUSABLE_SHOWN, "more file")
        err.print(f"... and {more} of the kind")
    for each in left_out:
        err.print(Text.assemble(("not read: ", "yellow"), str(each)), soft_wrap=True)


def rejects_table(found: list[Rejected]) -> Group:
    """Return each code with its rows, the remedy, and examples."""
    parts: list[RenderableType] = []
    for each in found:
        rows = counted(each.rows, "row")
        parts.append(
            Text.assemble((each.code.value, "bold"), f"  {rows}  ", (each.code.remedy, "dim"))
        )
        for row_id, detail in each.examples:
            parts.append(Text(f"  {row_id}: {detail}", overflow="ellipsis", no_wrap=True))
    return Group(*parts)


def estimate_lines(estimate: TimeEstimate) -> list[tuple[str, str]]:
    """Return one row for each kind of worker, and what they follow from."""
    rows = [(f"time, {rate.worker}", _rate(rate)) for rate in estimate.rates]
    return [*rows, ("estimate", estimate.note)]


def _rate(rate: Rate) -> str:
    if rate.seconds is None:
        return "does not fit into its memory"
    duration = _duration(rate.seconds)
    if rate.seconds_interval is None or rate.rows_per_second_interval is None:
        cost = ""
        if rate.cost is not None:
            cost = f", ${rate.cost:,.2f}"
        return f"{duration}, {rate.rows_per_second:.3g} rows/s{cost}"
    least, most = rate.seconds_interval
    slow, fast = rate.rows_per_second_interval
    return (
        f"{duration} ({_duration(least)} to {_duration(most)}), "
        f"{rate.rows_per_second:.1f} rows/s ({slow:.1f} to {fast:.1f}) a worker{_cost(rate)}"
    )


def _cost(rate: Rate) -> str:
    if rate.cost is None or rate.cost_interval is None:
        return ""
    least, most = rate.cost_interval
    return f", ${rate.cost:,.2f} (${least:,.2f} to ${most:,.2f})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))


def costs_table(name: str, costs: Costs) -> Group:
    """Return FLOPs, bytes and memory of each stage, and rows a second by arithmetic."""
    load = costs.workload
    model = [
        ("weights", f"{costs.parameters:,} parameters, {_giga(costs.weights_bytes)} GB"),
        ("cache of a row", f"{_giga(costs.row_cache_bytes)} GB"),
        ("assumed", f"paths of {load.path_tokens} tokens, 1 query per image in the first table"),
    ]
    stages = Table("stage", "of one", "GFLOP", "GB moved", "GB held", "times a row", **TABLE_STYLE)
    for stage in costs.stages:
        gflop = f"{stage.flops / 1e9:,.0f}"
        gigabytes = (_giga(stage.bytes), _giga(stage.memory))
        stages.add_row(stage.name, stage.unit, gflop, *gigabytes, f"{stage.per_row:.3g}")
    rates = Table("GPU", "queries per image", "rows at once", "rows/s", **TABLE_STYLE)
    for rate in costs.estimates:
        speed = f"{rate.rows_per_second:.3g}"
        rates.add_row(rate.gpu, str(rate.queries_per_image), str(rate.rows_at_once), speed)
    return Group(
        two_columns(f"{name}: costs by arithmetic, {load.dtype}", model),
        Text(
            "FLOPs; least bytes moved; memory held beside the weights by what is done at once",
            style="bold",
        ),
        stages,
        Text(
            f"rows a second: an estimate, at {costs.efficiency:.0%} of the data sheets' peaks"
            " (assumed), never measured here",
            style="bold",
        ),
        rates,
    )


TABLE_STYLE: dict[str, Any] = {"box": None, "padding": (0, 2), "header_style": "dim"}


def _giga(number: float) -> str:
    return f"{number / 1e9:.3g}"


def training_table(rows: list[dict[str, Any]]) -> Table:
    """Return what each stage reaches on each split of tests."""
    table = Table(*rows[0], title="on scenes never seen in training", title_justify="left")
    for row in rows:
        table.add_row(*map(_measure, row.values()))
    return table


def _measure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


@contextmanager
def progress(json: bool) -> Generator[OnProgress]:
    """Show the progress of a run on the error stream, so that the output can be piped.

    That is a bar on a terminal, a line now and then elsewhere, and nothing beside JSON.
    """
    is_json_log = telemetry_settings().log_json
    if err.is_terminal and not is_json_log:
        with _run_bar() as on_progress:
            yield _with_unfit(on_progress)
    elif json or is_json_log:
        yield lambda _: None
    else:
        yield _with_unfit(_progress_lines())


@contextmanager
def counting(total: int | None) -> Generator[Callable[[int], None]]:
    """Show how many rows are written so far, as a bar on a terminal; the total may be unknown."""
    columns = (
        SpinnerColumn(),
        TextColumn("writing rows"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task("", total=total)
        yield lambda written: bars.update(bar, completed=written)


@contextmanager
def steps(verb: str) -> Generator[Callable[[str, int, int], None]]:
    """Show the steps of some work as a bar on a terminal.

    The function yielded takes the name of the step, how many steps are done, and of how many.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task(verb, total=None)

        def on_step(name: str, done: int, total: int) -> None:
            bars.update(bar, description=f"{verb} {name}", completed=done, total=total)

        yield on_step


@contextmanager
def _run_bar() -> Generator[OnProgress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        bar = bars.add_task("planning", total=None, note="")

        def on_progress(run: RunProgress) -> None:
            bars.update(
                bar,
                description="segmenting",
                total=run.rows,
                completed=run.done,
                note=str(run),
            )

        yield on_progress


def _with_unfit(on_progress: OnProgress) -> OnProgress:
    """Name each worker that gets no shards as well, once."""
    named: set[str] = set()

    def report(run: RunProgress) -> None:
        for address, reason in run.unfit.items():
            if address not in named:
                named.add(address)
                err.print(f"worker {address} gets no shards: {reason}", markup=False)
        on_progress(run)

    return report


def _progress_lines() -> OnProgress:
    last = -LOG_EVERY

    def on_progress(run: RunProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY or run.done == run.rows:
            last = time.monotonic()
            err.print(str(run))

    return on_progress
