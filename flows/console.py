"""What the command line prints: errors, progress, tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flows.segment import Tally
    from schemas.runs import RunSummary

    Watch = Callable[[Tally], None]

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
            f"{summary.shards:,} ({summary.shards_computed:,} computed now, {summary.shards - summary.shards_computed:,} done before)",
        ),
        ("time", f"{summary.seconds:.1f} s, {summary.rows_per_second:.1f} rows/s"),
        *([("model busy", f"{summary.model_busy:.1%} of the time")] if summary.model_busy else []),
        ("model", f"{summary.settings.model.model} ({summary.model_revision})"),
    ]
    return two_columns(f"run {summary.run_id}", rows)


@contextmanager
def progress(json: bool) -> Iterator[Watch | None]:
    """Yields what a run tells its progress to, on the error stream so that output can be piped: a bar on a terminal, a
    line now and then in a log, nothing beside JSON."""
    if err.is_terminal:
        with _bar() as watch:
            yield watch
    else:
        yield None if json else _log_lines()


@contextmanager
def counting(total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields what rows written so far are told to: a bar on a terminal, nothing elsewhere. `total` may not be known."""
    columns = (SpinnerColumn(), TextColumn("writing rows"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task("", total=total)
        yield lambda written: bars.update(bar, completed=written)


@contextmanager
def _bar() -> Iterator[Watch]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        bar = bars.add_task("planning", total=None, note="")

        def watch(tally: Tally) -> None:
            bars.update(bar, description="segmenting", total=tally.rows, completed=tally.done, note=str(tally))

        yield watch


def _log_lines() -> Watch:
    last = -LOG_EVERY

    def watch(tally: Tally) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY or tally.done == tally.rows:
            last = time.monotonic()
            err.print(str(tally))

    return watch
