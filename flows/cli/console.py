"""What the command line prints: errors, progress, tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wordmask.tasks.telemetry.logs import LOG_JSON, is_asked

if TYPE_CHECKING:
    from wordmask.flows.reporting import OnProgress
    from wordmask.flows.reporting import Progress as RunProgress
    from wordmask.model.costs.roofline import Costs
    from wordmask.schemas.runs import RunSummary
    from wordmask.tasks.output.results import Rejected
    from wordmask.tasks.review.estimate import Rate, TimeEstimate

LOG_EVERY = 30.0  # seconds

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document, without colour or wrapping, for machines."""
    print(json.dumps(value, indent=1, default=str))


def two_columns(title: str, rows: list[tuple[str, str]]) -> Group:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return Group(Text(title, style="bold"), table)


def summary_table(summary: RunSummary) -> Group:
    rows = [
        ("rows", f"{summary.rows:,}"),
        ("masks", f"{summary.masks - summary.absent:,}"),
        ("absent", f"{summary.absent:,}"),
        ("rejected", f"{sum(summary.rejects.values()):,}"),
        *((f"  {code}", f"{count:,}") for code, count in summary.rejects.items()),
        (
            "shards",
            (
                f"{summary.shards:,} ({summary.shards_computed:,} computed now,"
                f" {summary.shards - summary.shards_computed:,} done before)"
            ),
        ),
        *(
            [("rows left", f"{summary.rows_left:,}; the same command takes them up")]
            if summary.rows_left
            else []
        ),
        ("time", f"{summary.seconds:.1f} s, {summary.rows_per_second:.1f} rows/s"),
        *([("model busy", f"{summary.model_busy:.1%} of the time")] if summary.model_busy else []),
        ("model", f"{summary.settings.model.model} ({summary.model_revision})"),
    ]
    return two_columns(f"run {summary.run_id}", rows)


def rejects_table(found: list[Rejected]) -> Group:
    """Each code with its rows, what to do, and examples."""
    parts: list[RenderableType] = []
    for each in found:
        head = Text.assemble(
            (each.code.value, "bold"),
            f"  {each.rows:,} row{'' if each.rows == 1 else 's'}  ",
            (each.code.remedy, "dim"),
        )
        parts += [
            head,
            *(
                Text(f"  {row_id}: {detail}", overflow="ellipsis", no_wrap=True)
                for row_id, detail in each.examples
            ),
        ]
    return Group(*parts)


def estimate_lines(estimate: TimeEstimate) -> list[tuple[str, str]]:
    """One line for each kind of worker, and what they follow from."""
    return [
        *((f"time, {rate.worker}", _rate(rate)) for rate in estimate.rates),
        ("estimate", estimate.note),
    ]


def _rate(rate: Rate) -> str:
    if rate.seconds is None:
        return "does not fit into its memory"
    if rate.seconds_interval is None or rate.rows_per_second_interval is None:
        return f"{_duration(rate.seconds)}, {rate.rows_per_second:.3g} rows/s" + (
            f", ${rate.cost:,.2f}" if rate.cost is not None else ""
        )
    (least, most), (slow, fast) = rate.seconds_interval, rate.rows_per_second_interval
    return (
        f"{_duration(rate.seconds)} ({_duration(least)} to {_duration(most)}), "
        f"{rate.rows_per_second:.1f} rows/s ({slow:.1f} to {fast:.1f}) a worker{_cost(rate)}"
    )


def _cost(rate: Rate) -> str:
    if rate.cost is None or rate.cost_interval is None:
        return ""
    least, most = rate.cost_interval
    return f", ${rate.cost:,.2f} (${least:,.2f} to ${most:,.2f})"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def costs_table(name: str, costs: Costs) -> Group:
    """FLOPs, bytes and memory of each stage, and rows a second by arithmetic."""
    load = costs.workload
    return Group(
        two_columns(
            f"{name}: costs by arithmetic, {load.dtype}",
            [
                ("weights", f"{costs.parameters:,} parameters, {_giga(costs.weights_bytes)} GB"),
                ("cache of a row", f"{_giga(costs.row_cache_bytes)} GB"),
                (
                    "assumed",
                    f"paths of {load.path_tokens} tokens, 1 query per image in the first table",
                ),
            ],
        ),
        Text(
            "FLOPs; least bytes moved; memory held beside the weights by what is done at once",
            style="bold",
        ),
        _grid(
            ("stage", "of one", "GFLOP", "GB moved", "GB held", "times a row"),
            [
                (
                    s.name,
                    s.unit,
                    f"{s.flops / 1e9:,.0f}",
                    _giga(s.bytes),
                    _giga(s.memory),
                    f"{s.per_row:.3g}",
                )
                for s in costs.stages
            ],
        ),
        Text(
            f"rows a second: an estimate, at {costs.efficiency:.0%} of the data sheets' peaks"
            " (assumed), never measured here",
            style="bold",
        ),
        _grid(
            ("GPU", "queries per image", "rows at once", "rows/s"),
            [
                (e.gpu, str(e.queries_per_image), str(e.rows_at_once), f"{e.rows_per_second:.3g}")
                for e in costs.estimates
            ],
        ),
    )


def _giga(number: float) -> str:
    return f"{number / 1e9:.3g}"


def _grid(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*head, box=None, padding=(0, 2), header_style="dim")
    for row in rows:
        table.add_row(*row)
    return table


@contextmanager
def progress(json: bool) -> Iterator[OnProgress]:
    """Yields what a run tells its progress to, on the error stream so that output can be piped: a
    bar on a terminal, a line now and then in a log, nothing beside JSON of either kind."""
    is_json_log = is_asked(LOG_JSON)
    if err.is_terminal and not is_json_log:
        with _bar() as on_progress:
            yield on_progress
    elif json or is_json_log:
        yield lambda _: None
    else:
        yield _log_lines()


@contextmanager
def counting(total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields what rows written so far are told to: a bar on a terminal, nothing elsewhere. `total`
    may not be known.
    """
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
def steps(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yields what each step is told to (what it is, how many are done, of how many): a bar on a
    terminal, nothing elsewhere.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task(verb, total=None)
        yield lambda what, done, of: bars.update(
            bar, description=f"{verb} {what}", completed=done, total=of
        )


@contextmanager
def _bar() -> Iterator[OnProgress]:
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


def _log_lines() -> OnProgress:
    last = -LOG_EVERY

    def on_progress(run: RunProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY or run.done == run.rows:
            last = time.monotonic()
            err.print(str(run))

    return on_progress


def training_table(rows: list[dict[str, Any]]) -> Table:
    """What each stage reaches on each split of tests."""
    table = Table(*rows[0], title="on scenes never seen in training", title_justify="left")
    for row in rows:
        table.add_row(
            *(
                "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    return table
