"""What the command line prints: errors, progress, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from flows.segment import Tally
    from schemas.runs import RunSummary

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document, without colour or wrapping, for machines."""
    print(json.dumps(value, indent=1, default=str))


def two_columns(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def summary_table(summary: RunSummary) -> Table:
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
        ("model", f"{summary.settings.model.model} ({summary.model_revision})"),
    ]
    return two_columns(f"run {summary.run_id}", rows)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Any]:
    """Yields what a run tells its progress to: a bar on the terminal's error stream, so that output can be piped."""
    if quiet:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("planning", total=None, note="")

        def watch(tally: Tally) -> None:
            progress.update(bar, description="segmenting", total=tally.rows, completed=tally.done, note=str(tally))

        yield watch
