"""Commands that run a table: run, retry, schedule."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wordmask.flows.cli.console import (
    complain,
    out,
    print_json,
    progress,
    summary_table,
    warn_of_files,
)
from wordmask.flows.cli.options import (
    Fields,
    Json,
    Output,
    Verbose,
    option_of,
    settings_options,
)
from wordmask.flows.prefect_api import configure, start_own_api
from wordmask.schemas.commands import BudgetSettings, ScheduleSettings, TelemetrySettings
from wordmask.schemas.settings import RunSettings

if TYPE_CHECKING:
    from wordmask.flows.reporting import OnProgress
    from wordmask.schemas.rejects import RejectCode
    from wordmask.schemas.runs import RunSummary

# The message for who interrupts a run.
RESUME = "what is done has its receipts, and the same command takes up the rest"
PUBLISHED_WITH_GAPS = 3  # exit code

Workers = Annotated[int | None, option_of(RunSettings, "workers")]
Scheduler = Annotated[str | None, option_of(RunSettings, "scheduler")]
Wait = Annotated[bool, option_of(RunSettings, "wait")]


@settings_options
def run(
    settings: RunSettings,
    budget: BudgetSettings,
    *,
    verbose: Verbose = False,
    json: Json = False,
    telemetry: TelemetrySettings,
) -> None:
    """Segment a whole table. Run it again to take up what is left.

    Examples:

    [bold]wordmask run queries.parquet masks/[/bold]

    [bold]wordmask run s3://lake/queries/ s3://lake/masks/ --dtype bfloat16 \\
    --model moondream/moondream3-preview --refiner moondream/SegHeadRefiner[/bold]
    """
    began = time.monotonic()
    settings = within_budget(settings, budget)
    _check_local_input(settings)
    _export(telemetry)

    def start(on_progress: OnProgress) -> RunSummary:
        from wordmask.flows.segment import segment_flow

        return segment_flow(on_progress, began)(settings)

    _show_run(_run_flow(start, json, verbose), json)


@settings_options
def retry(
    output: Output,
    code: Annotated[
        list[str],
        typer.Option(
            "--code",
            help="Reject code, see `wordmask rejects`. May be given again.",
            show_default=False,
        ),
    ],
    workers: Workers = None,
    scheduler: Scheduler = None,
    wait: Wait = False,
    *,
    verbose: Verbose = False,
    json: Json = False,
    telemetry: TelemetrySettings,
) -> None:
    """Try rejected rows of some codes again, with the model and settings of the newest run.

    Only those rows are computed.

    Example: [bold]wordmask retry masks/ --code image_unreachable[/bold]
    """
    codes = _reject_codes(code)
    _export(telemetry)

    def start(on_progress: OnProgress) -> RunSummary:
        from wordmask.flows.segment import retry_flow

        flow = retry_flow(on_progress)
        return flow(output, codes, workers=workers, scheduler=scheduler, wait=wait)

    _show_run(_run_flow(start, json, verbose), json)


@settings_options
def schedule(
    settings: RunSettings,
    budget: BudgetSettings,
    when: ScheduleSettings,
    *,
    apply: Annotated[
        bool, typer.Option("--apply", help="Register it with the server of PREFECT_API_URL.")
    ] = False,
    json: Json = False,
    # What `wordmask run` takes for its own process is accepted, and is no part of a deployment.
    verbose: Annotated[bool, typer.Option("--verbose", "-v", hidden=True)] = False,
    telemetry: Annotated[TelemetrySettings, Fields(hidden=True)],
) -> None:
    """Run a table every night, with the options of `wordmask run`.

    Print the deployment as a prefect.yaml for `prefect deploy`, or register it at once.

    Example: [bold]wordmask schedule s3://lake/queries/ s3://lake/masks/ --cron "0 2 * * *" \\
    --budget 6h --apply[/bold]
    """
    settings = within_budget(settings, budget)
    configure(verbose=False)
    from wordmask.flows.schedule import make_deployment, register_deployment

    made = make_deployment(settings, when)
    if not apply:
        _print_deployment(made, json)
        return
    deployment_id = register_deployment(made)
    if json:
        print_json(made | {"deployment_id": str(deployment_id)})
        return
    hint = f"A worker of its pool runs it: `prefect worker start --pool {when.pool}`"
    registered = f"segment/{when.name}: registered, {when.cron} {when.timezone}"
    out.print(f"{registered}. {hint}", soft_wrap=True)


def within_budget(settings: RunSettings, budget: BudgetSettings) -> RunSettings:
    """Return the settings with the budget in seconds.

    Raises:
        ValueError: the text is no budget, names money where there is no price, or buys no time.
    """
    fields = dict(settings) | {"budget_seconds": budget.seconds}
    return type(settings).model_validate(fields)


def _reject_codes(names: list[str]) -> tuple[RejectCode, ...]:
    from wordmask.schemas.rejects import RejectCode

    known = {code.value for code in RejectCode}
    for name in names:
        if name not in known:
            raise ValueError(f"--code {name}: must be one of {', '.join(sorted(known))}")
    return tuple(RejectCode(name) for name in names)


def _check_local_input(settings: RunSettings) -> None:
    """Raise ValueError for a local input that cannot be used.

    Footers of local files are read in a moment, while Prefect takes seconds to start.
    """
    from wordmask.tasks.storage import Store
    from wordmask.tasks.table.footers import input_files

    if Store.open(settings.input).is_local:
        refuse = not settings.skip_bad_files
        input_files(settings, Store.open(settings.output), refuse=refuse)


def _export(telemetry: TelemetrySettings) -> None:
    """Set the variables from which this process and its workers take their settings of telemetry.

    `wordmask.tasks.telemetry` reads them. They are the same that a user may set.
    """
    os.environ.update(telemetry.environ())


def _run_flow(start: Callable[[OnProgress], RunSummary], json: bool, verbose: bool) -> RunSummary:
    """Return what a flow returns, and show its progress meanwhile."""
    configure(verbose)
    importlib.import_module("wordmask.flows.segment")  # before the API starts
    start_own_api(verbose)
    try:
        with progress(json) as on_progress:
            return start(on_progress)
    except KeyboardInterrupt:
        complain("stopped", RESUME)
        raise SystemExit(130) from None


def _show_run(summary: RunSummary, json: bool) -> None:
    """Print what a run did, and end with a code of its own where it was published with gaps."""
    if json:
        print_json(summary.model_dump(mode="json"))
    else:
        out.print(summary_table(summary))
        warn_of_files(summary.skipped, summary.left_out, "left out a file that cannot be used")
        if not summary.rows_left:
            out.print(f"[dim]masks are in[/dim] {summary.settings.output.rstrip('/')}/masks")
    if summary.gaps and not summary.rows_left:
        raise SystemExit(PUBLISHED_WITH_GAPS)


def _print_deployment(made: dict[str, Any], json: bool) -> None:
    import yaml

    if json:
        print_json(made)
    else:
        print(yaml.safe_dump(made, sort_keys=False, width=1000), end="")
