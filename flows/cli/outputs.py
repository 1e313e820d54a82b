"""Commands that read an output: status, verify, rejects, gc, evaluate, sheet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wordmask.flows.cli.console import (
    counted,
    err,
    out,
    print_json,
    rejects_table,
    summary_table,
    two_columns,
)
from wordmask.flows.cli.options import Json, Output

if TYPE_CHECKING:
    from wordmask.tasks.output.garbage import Collected, Garbage


def status(output: Output, json: Json = False) -> None:
    """Say what an output holds: its published runs, and shards that wait for their run to end.

    Example: [bold]wordmask status masks/[/bold]
    """
    from wordmask.tasks.output.catalog import status as read_status
    from wordmask.tasks.storage import Store

    found = read_status(Store.open(output))
    if json:
        print_json(found.model_dump(mode="json"))
        return
    shards = counted(found.shards, "shard")
    if not found.runs:
        out.print(
            f"{output}: no published run; {shards} done. [dim]`wordmask run`"
            " takes up what is left.[/dim]"
        )
        return
    line = f"[bold]{output}[/bold]: {counted(len(found.runs), 'published run')}, {shards}"
    if found.unpublished:
        line += f", {found.unpublished:,} of them done since the newest"
    out.print(line)
    for summary in found.runs:
        out.print(summary_table(summary))


def verify(output: Output, json: Json = False) -> None:
    """Check that the newest published run has each row once, and no part was changed since.

    A row is in one of masks or rejects.

    Example: [bold]wordmask verify masks/[/bold]
    """
    from wordmask.tasks.output.verify import verify_output
    from wordmask.tasks.storage import Store

    found = verify_output(Store.open(output))
    if json:
        print_json(found.model_dump(mode="json") | {"holds": found.holds})
    else:
        for violation in found.violations:
            err.print(violation, soft_wrap=True, highlight=False)
        verdict = f"{len(found.violations):,} violations"
        if found.holds:
            verdict = "every row is accounted for, once"
        if found.rows_in_gaps:
            verdict += f"; {found.rows_in_gaps:,} further rows are in gaps that the run names"
        out.print(f"{output}: {found.rows:,} rows in {counted(found.shards, 'shard')}: {verdict}")
    if not found.holds:
        raise SystemExit(1)


def rejects(
    output: Output,
    examples: Annotated[int, typer.Option(min=0, max=1000, help="Rows to show of each code.")] = 3,
    json: Json = False,
) -> None:
    """Say which rows the newest published run rejected, why, and what to do about it.

    Example: [bold]wordmask rejects masks/[/bold]
    """
    from wordmask.tasks.output.results import rejected
    from wordmask.tasks.storage import Store

    found = rejected(Store.open(output), examples)
    if json:
        print_json([dataclasses.asdict(each) | {"remedy": each.code.remedy} for each in found])
    elif found:
        out.print(rejects_table(found))
    else:
        out.print(f"{output}: no row was rejected")


def gc(
    output: Output,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Remove what an earlier gc named, if it still can go."),
    ] = False,
    keep_runs: Annotated[
        int | None,
        typer.Option(min=1, help="Forget all but so many of the newest published runs, too."),
    ] = None,
    json: Json = False,
) -> None:
    """Name what no published run names any more, and with --delete remove what was named before.

    That is parts of other settings, models and inputs, and of runs given up. Removal takes two
    calls, an hour apart or more: the second removes what the first one named, unless a run names it
    by then. So a nightly `gc --delete` removes what it named the night before.

    Example: [bold]wordmask gc masks/ --keep-runs 7 --delete[/bold]
    """
    found = _collect(output, keep_runs, delete)
    if json:
        counts = {"named": _garbage_counts(found.named), "removed": _garbage_counts(found.removed)}
        print_json({"runs_kept": found.named.runs_kept, **counts})
        return
    if delete:
        out.print(f"{output}: removed {_garbage_text(found.removed)}, which were named before")
    out.print(
        f"{output}: named {_garbage_text(found.named)};"
        f" {counted(found.named.runs_kept, 'published run')} kept"
    )
    if found.named.files:
        out.print(
            "[dim]`wordmask gc --delete` removes those that no run names by then, an hour from now"
            " or later[/dim]"
        )


def _collect(output: str, keep_runs: int | None, delete: bool) -> Collected:
    from wordmask.tasks.output.garbage import collect_garbage, name_garbage
    from wordmask.tasks.output.lease import acquire_lease
    from wordmask.tasks.storage import Store

    store = Store.open(output)
    if not delete:
        return name_garbage(store, keep_runs)
    with acquire_lease(store, "gc") as lease:
        return collect_garbage(store, lease, keep_runs)


def _garbage_counts(garbage: Garbage) -> dict[str, Any]:
    return {"shards": garbage.shards, "bytes": garbage.bytes, "paths": garbage.paths}


def _garbage_text(garbage: Garbage) -> str:
    files = counted(len(garbage.files), "file")
    return f"{files} of {counted(garbage.shards, 'shard')}, {garbage.bytes / 1e6:,.1f} MB"


def evaluate(
    output: Output,
    truth: Annotated[
        str,
        typer.Argument(
            metavar="TRUTH.parquet",
            help="Table with row_id and mask struct<size, counts>.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Score the newest published run against ground truth, joined on row_id.

    mIoU is the mean of the rows' IoUs; cIoU all intersections over all unions. Every row of the
    truth counts: one that is absent, rejected or missing is scored as an empty mask, which is IoU 0
    unless the truth is empty too.

    Example: [bold]wordmask evaluate masks/ scenes.parquet --json[/bold]
    """
    from wordmask.tasks.output.results import evaluate as score
    from wordmask.tasks.storage import Store

    scores = dataclasses.asdict(score(Store.open(output), Store.open(truth)))
    if json:
        print_json(scores)
        return
    rows = [(name, _score_text(value)) for name, value in scores.items() if value is not None]
    out.print(two_columns("scores", rows))


def _score_text(value: float) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}"


def sheet(
    output: Output,
    png: Annotated[
        Path, typer.Argument(metavar="SHEET.png", help="Picture to write.", show_default=False)
    ],
    count: Annotated[
        int, typer.Option(min=1, max=400, help="Rows to show, spread over the table.")
    ] = 12,
    json: Json = False,
) -> None:
    """Draw a contact sheet of masks over their images, from the newest published run.

    Example: [bold]wordmask sheet masks/ sheet.png[/bold]
    """
    from wordmask.tasks.review.overlay import png_bytes
    from wordmask.tasks.review.sheet import sheet as draw_sheet
    from wordmask.tasks.storage import Store

    page = draw_sheet(Store.open(output), count)
    png.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(png_bytes(page))
    if json:
        print_json({"png": str(png), "width": page.width, "height": page.height})
    else:
        out.print(f"wrote {png} ({page.width} x {page.height} pixels)")
