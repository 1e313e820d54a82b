"""The command line. Each command reads its arguments, calls a flow or a task, and prints what came
of it.

Heavy libraries are imported inside the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from wordmask.flows.cli.console import (
    costs_table,
    counting,
    err,
    estimate_lines,
    out,
    print_json,
    progress,
    rejects_table,
    steps,
    summary_table,
    training_table,
    two_columns,
)
from wordmask.flows.prefect_api import configure, silence_libraries, start_own_api
from wordmask.tasks.telemetry.logs import (
    LOG_JSON,
    LOG_QUERIES,
    METRICS_DIR,
    is_asked,
    logger,
    redacted_errors,
    without_credentials,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from wordmask.flows.reporting import OnProgress
    from wordmask.schemas.runs import Plan, Receipt, RunSummary
    from wordmask.schemas.settings import RunSettings

app = typer.Typer(
    name="wordmask",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Words in, masks out, for whole tables of images.",
)
import_app = typer.Typer(no_args_is_help=True, help="Turn data sets into input tables.")
app.add_typer(import_app, name="import")
train_app = typer.Typer(no_args_is_help=True, help="What training the default model needs.")
app.add_typer(train_app, name="train")

SHOWN = 10  # files of no use that are named
RESUME = "what is done has its receipts, and the same command takes up the rest"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Model = Annotated[
    str,
    typer.Option(
        help="demo, a local folder, or a hub repository such as moondream/moondream3-preview."
    ),
]
Refiner = Annotated[
    str | None, typer.Option(help="Where the refiner's weights are, if not with the model's.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Number format of the model.")]
Iterations = Annotated[
    int | None,
    typer.Option(
        min=0, max=100, help="Refinement steps; 0 keeps the coarse mask. Default: the model's own."
    ),
]
Grammar = Annotated[
    bool,
    typer.Option(
        "--grammar/--no-grammar", help="Decode well-formed paths only, or freely as published."
    ),
]
EarlyStop = Annotated[
    bool,
    typer.Option(
        "--early-stop/--no-early-stop",
        help="Leave off refining masks that have settled, or take every step.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help=(
            "A row's mask depends on that row alone, to the last digit, whatever is beside it."
            " Slower."
        ),
    ),
]
PathStyle = Annotated[
    Literal["exact", "smooth"],
    typer.Option(
        help=(
            "Outlines of masks: pixel for pixel, or curves (needs `pip install"
            " 'wordmask\\[smooth]'`)."
        )
    ),
]
Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="Parquet file, folder, glob, or URI of one (s3://...).",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="Folder or URI for masks, rejects, receipts and runs.",
        show_default=False,
    ),
]
ShardRows = Annotated[int, typer.Option(min=1, help="Most rows of a shard.")]
ShardBytes = Annotated[
    int,
    typer.Option(
        min=1,
        help="Most bytes of a shard's rows in the table, compressed. A worker holds two shards.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes. Default: one per GPU, else one per core."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another run on this output to end.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show Prefect's and Dask's own logs.")
]
BatchRows = Annotated[int, typer.Option(min=1, help="Most queries decoded together.")]
Scheduler = Annotated[
    str | None, typer.Option(metavar="tcp://HOST:PORT", help="Use a standing Dask cluster.")
]
ImageColumn = Annotated[
    str, typer.Option(help="Column of images: struct<bytes, path>, binary, or URI string.")
]
QueryColumn = Annotated[str, typer.Option(help="Column of expressions.")]
RowIdColumn = Annotated[str, typer.Option(help="Column of unique row ids, if there is one.")]
Carry = Annotated[
    list[str] | None,
    typer.Option(help="Further input column to copy into the masks. May be given again."),
]
MaxPixels = Annotated[
    int, typer.Option("--max-image-pixels", min=1, help="Larger images are rejected.")
]
MaxBytes = Annotated[
    int, typer.Option("--max-image-bytes", min=1, help="Larger image files are rejected.")
]
Https = Annotated[
    bool, typer.Option("--allow-https", help="Fetch images from https:// URIs, of public servers.")
]
Price = Annotated[
    float | None,
    typer.Option(min=0.0001, help="What all workers together cost an hour, in dollars."),
]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json", envvar=LOG_JSON, help="Log to the error stream, a JSON document a line."
    ),
]
LogQueries = Annotated[
    bool,
    typer.Option(
        "--log-queries", envvar=LOG_QUERIES, help="Let logs and errors quote the rows' expressions."
    ),
]
MetricsDir = Annotated[
    str | None,
    typer.Option(
        envvar=METRICS_DIR, help="Folder for each worker's metrics, as Prometheus text files."
    ),
]
Roots = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-root",
        help=(
            "Folder or URI below which images may lie, besides the input's own. May be given again."
        ),
    ),
]

OF_THIS_PROCESS = (
    "verbose",
    "json",
    "log_json",
    "log_queries",
    "metrics_dir",
)  # options of `run` that are none of its settings


def _run_settings(
    input: str,
    output: str,
    *,
    model: str,
    refiner: str | None,
    revision: str | None,
    device: str | None,
    dtype: str,
    refiner_iterations: int | None,
    early_stop: bool,
    grammar: bool,
    deterministic: bool,
    path_style: str,
    shard_rows: int,
    shard_bytes: int,
    image_column: str,
    query_column: str,
    row_id_column: str,
    carry: list[str] | None,
    max_image_pixels: int,
    max_image_bytes: int,
    allow_https: bool,
    allow_root: list[str] | None,
    budget: str | None = None,
    price_per_hour: float | None = None,
    **execution: Any,
) -> RunSettings:
    from wordmask.schemas.settings import (
        Columns,
        ModelSettings,
        RunSettings,
        SegmentSettings,
        seconds_of_budget,
    )

    segment = SegmentSettings.model_validate(
        {
            "columns": Columns(image=image_column, query=query_column, row_id=row_id_column),
            "carry": tuple(carry or ()),
            "refiner_iterations": refiner_iterations,
            "early_stop": early_stop,
            "grammar": grammar,
            "deterministic": deterministic,
            "path_style": path_style,
            "dtype": dtype,
            "max_image_pixels": max_image_pixels,
            "max_image_bytes": max_image_bytes,
            "allow_https": allow_https,
            "allow_roots": tuple(allow_root or ()),
        }
    )
    which = ModelSettings(model=model, refiner=refiner, revision=revision, device=device)
    seconds = None if budget is None else seconds_of_budget(budget, price_per_hour)
    return RunSettings(
        input=input,
        output=output,
        segment=segment,
        model=which,
        shard_rows=shard_rows,
        shard_bytes=shard_bytes,
        budget_seconds=seconds,
        **execution,
    )


@app.command()
def segment(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", exists=True, dir_okay=False, help="Image file.", show_default=False
        ),
    ],
    expression: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help="What to segment.", show_default=False)
    ],
    overlay: Annotated[
        Path | None, typer.Option(help="Write the image with its mask drawn over it, as PNG.")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="A point on the object, 0..1 of the image; repeatable."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="A box around the object, 0..1 of the image."),
    ] = None,
    model: Model = "demo",
    refiner: Refiner = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "float32",
    refiner_iterations: Iterations = None,
    early_stop: EarlyStop = True,
    grammar: Grammar = True,
    path_style: PathStyle = "exact",
    json: Json = False,
) -> None:
    """Segment one image.

    Example: [bold]wordmask segment scene.png "the dog left of the red car" --overlay out.png[/bold]
    """
    refs = tuple(_numbers("--point", text, 2) for text in point or ()) + tuple(
        _numbers("--box", text, 4) for text in box or ()
    )
    pixels = _read_image(image)
    from wordmask.model.segmenter import (
        Query,
        Segmenter,
    )  # seconds: what is wrong with the call is told before

    segmenter = Segmenter.from_pretrained(
        model,
        refiner=refiner,
        revision=revision,
        device=device,
        dtype=dtype,
        refiner_iterations=refiner_iterations,
        early_stop=early_stop,
        grammar=grammar,
        path_style=path_style,
    )
    segmenter.check_query(expression, refs)
    (found,) = segmenter.segment_many(
        [pixels], [Query(image=0, object=expression, spatial_refs=refs)]
    )
    if overlay is not None:
        from wordmask.tasks.review.overlay import note_of, png_bytes
        from wordmask.tasks.review.overlay import overlay as draw

        overlay.parent.mkdir(parents=True, exist_ok=True)
        overlay.write_bytes(png_bytes(draw(pixels, found.mask, expression, note_of(vars(found)))))
    if json:
        print_json(
            {name: value for name, value in vars(found).items() if name != "mask"}
            | {"mask": found.rle}
        )
        return
    height, width = found.mask.shape
    x, y, w, h = found.bbox
    rows = [
        ("status", found.status),
        ("mask", f"{found.area:,} of {height * width:,} pixels"),
        ("box", f"x {x}, y {y}, {w} x {h} pixels"),
    ]
    rows += [
        (name.replace("_", " "), f"{getattr(found, name):.3f}")
        for name in ("predicted_iou", "trust")
        if getattr(found, name) is not None
    ]
    rows += [("overlay", str(overlay))] if overlay is not None else []
    out.print(two_columns(f"“{expression}” in {image.name}", rows))


def _read_image(path: Path) -> NDArray[np.uint8]:
    from wordmask.schemas.settings import PILLOW_PIXELS, SegmentSettings
    from wordmask.tasks.images.decode import ImageError, decode

    data = path.read_bytes()
    try:
        # A person who names one file means it: only what Pillow itself refuses is too large.
        return decode(
            data, SegmentSettings(max_image_pixels=PILLOW_PIXELS, max_image_bytes=max(1, len(data)))
        )
    except ImageError as error:
        raise ValueError(f"{path}: {error.detail}; {error.code.remedy}") from None


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise typer.BadParameter(
            f"{text!r}: give {count} numbers in 0..1, separated by commas", param_hint=option
        )
    return numbers


@app.command()
def run(
    input: Input,
    output: Output,
    model: Model = "demo",
    refiner: Refiner = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "float32",
    refiner_iterations: Iterations = None,
    early_stop: EarlyStop = True,
    grammar: Grammar = True,
    deterministic: Deterministic = False,
    path_style: PathStyle = "exact",
    shard_rows: ShardRows = 256,
    shard_bytes: ShardBytes = 256_000_000,
    batch_rows: BatchRows = 64,
    workers: Workers = None,
    scheduler: Scheduler = None,
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            help=(
                "How often a shard is tried again whose worker died. 0: rows that kill are not"
                " looked for."
            ),
        ),
    ] = 3,
    image_column: ImageColumn = "image",
    query_column: QueryColumn = "query",
    row_id_column: RowIdColumn = "row_id",
    carry: Carry = None,
    max_image_pixels: MaxPixels = 100_000_000,
    max_image_bytes: MaxBytes = 100_000_000,
    allow_https: Https = False,
    allow_root: Roots = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="2h|$40", help="Begin no shard that would not end within it."),
    ] = None,
    price_per_hour: Price = None,
    wait: Wait = False,
    verbose: Verbose = False,
    json: Json = False,
    log_json: LogJson = False,
    log_queries: LogQueries = False,
    metrics_dir: MetricsDir = None,
) -> None:
    """Segment a whole table. Run it again to take up what is left.

    Examples:

    [bold]wordmask run queries.parquet masks/[/bold]

    [bold]wordmask run s3://lake/queries/ s3://lake/masks/ --dtype bfloat16
    --model moondream/moondream3-preview --refiner moondream/SegHeadRefiner[/bold]
    """
    settings = _run_settings(
        input,
        output,
        model=model,
        refiner=refiner,
        revision=revision,
        device=device,
        dtype=dtype,
        refiner_iterations=refiner_iterations,
        early_stop=early_stop,
        grammar=grammar,
        deterministic=deterministic,
        path_style=path_style,
        shard_rows=shard_rows,
        shard_bytes=shard_bytes,
        image_column=image_column,
        query_column=query_column,
        row_id_column=row_id_column,
        carry=carry,
        max_image_pixels=max_image_pixels,
        max_image_bytes=max_image_bytes,
        allow_https=allow_https,
        allow_root=allow_root,
        batch_rows=batch_rows,
        workers=workers,
        scheduler=scheduler,
        retries=retries,
        wait=wait,
        budget=budget,
        price_per_hour=price_per_hour,
    )
    _check_local_input(settings)
    _watch(log_json, log_queries, metrics_dir)

    def work(on_progress: OnProgress) -> RunSummary:
        from wordmask.flows.segment import segment_flow

        return segment_flow(on_progress)(settings)

    _show_run(_run_flow(work, json, verbose), json)


def _check_local_input(settings: RunSettings) -> None:
    """Footers of local files are read in a moment, while Prefect takes seconds to start: an input
    that cannot be used is told first.
    """
    from wordmask.tasks.storage import Store
    from wordmask.tasks.table.footers import input_files

    source = Store.open(settings.input)
    if source.is_local:
        input_files(source, Store.open(settings.output), settings.segment)


def _watch(log_json: bool, log_queries: bool, metrics_dir: str | None) -> None:
    """Tell this process and the workers that it starts, which inherit its environment, what of the
    run is to be seen.
    """
    told = {
        LOG_JSON: "1" if log_json else "",
        LOG_QUERIES: "1" if log_queries else "",
        METRICS_DIR: metrics_dir or "",
    }
    os.environ.update(told)


def _run_flow(work: Callable[[OnProgress], RunSummary], json: bool, verbose: bool) -> RunSummary:
    """What a flow gives back, with its progress shown."""
    configure(verbose)
    import wordmask.flows.segment  # noqa: F401 (all must be imported before the API starts)

    start_own_api(verbose)
    try:
        with progress(json) as on_progress:
            return work(on_progress)
    except KeyboardInterrupt:
        _complain("stopped", RESUME)
        raise SystemExit(130) from None


def _show_run(summary: RunSummary, json: bool) -> None:
    if json:
        print_json(summary.model_dump(mode="json"))
        return
    out.print(summary_table(summary))
    if not summary.rows_left:
        out.print(f"[dim]masks are in[/dim] {summary.settings.output.rstrip('/')}/masks")


@app.command()
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
    verbose: Verbose = False,
    json: Json = False,
    log_json: LogJson = False,
    log_queries: LogQueries = False,
    metrics_dir: MetricsDir = None,
) -> None:
    """Try rejected rows of some codes again, with the model and settings of the newest run. Only
    those rows are computed.

    Example: [bold]wordmask retry masks/ --code image_unreachable[/bold]
    """
    from wordmask.schemas.rejects import RejectCode

    known = {each.value for each in RejectCode}
    if unknown := [each for each in code if each not in known]:
        raise ValueError(f"--code {unknown[0]}: must be one of {', '.join(sorted(known))}")
    _watch(log_json, log_queries, metrics_dir)

    def work(on_progress: OnProgress) -> RunSummary:
        from wordmask.flows.segment import retry_flow

        codes = tuple(RejectCode(each) for each in code)
        return retry_flow(on_progress)(
            output, codes, workers=workers, scheduler=scheduler, wait=wait
        )

    _show_run(_run_flow(work, json, verbose), json)


@app.command(context_settings={"ignore_unknown_options": True})
def schedule(
    run_words: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT OUTPUT [OPTIONS]",
            help="As for `wordmask run`, with its options.",
            show_default=False,
        ),
    ],
    cron: Annotated[
        str, typer.Option(help="When, as minute, hour, day, month, day of the week.")
    ] = "0 2 * * *",
    timezone: Annotated[
        str, typer.Option(help="In which --cron is meant, such as Europe/Berlin.")
    ] = "UTC",
    name: Annotated[
        str, typer.Option(help="Name of the deployment; one of this name is replaced.")
    ] = "nightly",
    pool: Annotated[str, typer.Option(help="Work pool whose workers run it.")] = "local",
    apply: Annotated[
        bool, typer.Option("--apply", help="Register it with the server of PREFECT_API_URL.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a table every night: print the deployment as a prefect.yaml for `prefect deploy`, or
    register it at once.

    Example: [bold]wordmask schedule s3://lake/queries/ s3://lake/masks/ --cron "0 2 * * *" --budget
    6h --apply[/bold]
    """
    context = (
        typer.main.get_command(app).commands["run"].make_context("wordmask schedule", run_words)
    )  # type: ignore[attr-defined]
    settings = _run_settings(
        **{
            option: value
            for option, value in context.params.items()
            if option not in OF_THIS_PROCESS
        }
    )
    configure(verbose=False)
    import yaml

    from wordmask.flows.schedule import apply as register
    from wordmask.flows.schedule import deployment_of

    made = deployment_of(settings, cron=cron, timezone=timezone, name=name, pool=pool)
    if apply:
        registered = register(made)
    if json:
        print_json(made | ({"deployment_id": str(registered)} if apply else {}))
    elif apply:
        hint = f"A worker of its pool runs it: `prefect worker start --pool {pool}`"
        out.print(f"segment/{name}: registered, {cron} {timezone}. {hint}", soft_wrap=True)
    else:
        print(yaml.safe_dump(made, sort_keys=False, width=1000), end="")


@app.command()
def verify(output: Output, json: Json = False) -> None:
    """Check that each row of the newest published run is in one of masks or rejects, once, and that
    no part was changed since.

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
        verdict = (
            "every row is accounted for, once"
            if found.holds
            else f"{len(found.violations):,} violations"
        )
        out.print(f"{output}: {found.rows:,} rows in {_count(found.shards, 'shard')}: {verdict}")
    if not found.holds:
        raise SystemExit(1)


@app.command()
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


@app.command()
def gc(
    output: Output,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it. Without, it is only told.")
    ] = False,
    keep_runs: Annotated[
        int | None,
        typer.Option(min=1, help="Forget all but so many of the newest published runs, too."),
    ] = None,
    json: Json = False,
) -> None:
    """Find what no published run names any more: parts of other settings, models and inputs, and of
    runs given up.

    Example: [bold]wordmask gc masks/ --keep-runs 7 --delete[/bold]
    """
    from wordmask.tasks.output.garbage import find_garbage, remove_garbage
    from wordmask.tasks.output.lease import acquire_lease
    from wordmask.tasks.storage import Store

    store = Store.open(output)
    if delete:
        # Parts of a run that is at work are in no published run yet.
        with acquire_lease(store, "gc"):
            found = find_garbage(store, keep_runs)
            remove_garbage(store, found)
    else:
        found = find_garbage(store, keep_runs)
    if json:
        print_json(found.model_dump(mode="json") | {"deleted": delete})
        return
    what = (
        f"{len(found.paths):,} files of {_count(found.shards, 'shard')},"
        f" {found.bytes / 1e6:,.1f} MB"
    )
    out.print(
        f"{output}: {'removed' if delete else 'would remove'} {what};"
        f" {_count(found.runs_kept, 'published run')} kept"
    )
    if found.paths and not delete:
        out.print("[dim]--delete removes them[/dim]")


@app.command()
def plan(
    input: Input,
    output: Output,
    model: Model = "demo",
    refiner: Refiner = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "float32",
    refiner_iterations: Iterations = None,
    early_stop: EarlyStop = True,
    grammar: Grammar = True,
    deterministic: Deterministic = False,
    path_style: PathStyle = "exact",
    shard_rows: ShardRows = 256,
    shard_bytes: ShardBytes = 256_000_000,
    batch_rows: BatchRows = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Workers to tell the time of. Default: 1; a run's, to --calibrate."
        ),
    ] = None,
    scheduler: Scheduler = None,
    image_column: ImageColumn = "image",
    query_column: QueryColumn = "query",
    row_id_column: RowIdColumn = "row_id",
    carry: Carry = None,
    max_image_pixels: MaxPixels = 100_000_000,
    max_image_bytes: MaxBytes = 100_000_000,
    allow_https: Https = False,
    allow_root: Roots = None,
    price_per_hour: Price = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help=(
                "Do a few shards first and time them. They are done then, and in no published run."
            ),
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
    """Say what a run would do, how long it may take and what it may cost, without doing it. Give it
    the options that the run will have.

    Only footers and listings are read, and row ids. The time is told by shards of the output that
    were done before with the same model and settings; where there are none, by arithmetic, for
    GPUs. --calibrate and --preview do compute, a little.

    Examples:

    [bold]wordmask plan queries.parquet masks/[/bold]

    [bold]wordmask plan s3://lake/queries/ s3://lake/masks/ --calibrate --price-per-hour 3.50
    --preview 12[/bold]
    """
    from wordmask.model.hub.registry import resolve_model
    from wordmask.tasks.plan import make_plan
    from wordmask.tasks.review.estimate import estimate_time
    from wordmask.tasks.storage import Store

    settings = _run_settings(
        input,
        output,
        model=model,
        refiner=refiner,
        revision=revision,
        device=device,
        dtype=dtype,
        refiner_iterations=refiner_iterations,
        early_stop=early_stop,
        grammar=grammar,
        deterministic=deterministic,
        path_style=path_style,
        shard_rows=shard_rows,
        shard_bytes=shard_bytes,
        image_column=image_column,
        query_column=query_column,
        row_id_column=row_id_column,
        carry=carry,
        max_image_pixels=max_image_pixels,
        max_image_bytes=max_image_bytes,
        allow_https=allow_https,
        allow_root=allow_root,
        batch_rows=batch_rows,
        workers=workers,
        scheduler=scheduler,
    )
    source = resolve_model(model, refiner=refiner, revision=revision)
    store = Store.open(settings.output)
    made = make_plan(settings, source.revision, store, refuse=False)
    timed: list[Receipt] = []
    if calibrate and made.pending:
        timed, used = _calibrated(made, settings)
        settings = settings.model_copy(update={"workers": workers or used})
        made = made.model_copy(
            update={"done": made.done | {receipt.shard.shard_id for receipt in timed}}
        )
    estimate = (
        estimate_time(
            made, settings, source, store, calibrated=timed, price_per_hour=price_per_hour
        )
        if made.pending
        else None
    )
    report = made.counts() | {
        "model_revision": source.revision,
        "settings_hash": settings.segment.settings_hash,
    }
    if calibrate:
        report["rows_calibrated"] = sum(receipt.rows for receipt in timed)
    drawn = None if preview is None else _previewed(made, settings, preview, seed, preview_sheet)
    if json:
        details = {
            "estimate": estimate.model_dump(mode="json") if estimate else None,
            "unusable": [file.model_dump(mode="json") for file in made.unusable],
        }
        print_json(report | details | ({"preview": drawn} if drawn else {}))
        return
    rows = [(name.replace("_", " "), _told(value)) for name, value in report.items()]
    rows += estimate_lines(estimate) if estimate else []
    rows += [("preview", drawn["sheet"])] if drawn else []
    out.print(two_columns(f"plan of {input} → {output}", rows))
    for file in made.unusable[:SHOWN]:
        err.print(Text.assemble(("a run refuses this input: ", "yellow"), file.why), soft_wrap=True)
    if len(made.unusable) > SHOWN:
        err.print(f"... and {_count(len(made.unusable) - SHOWN, 'more file')} of the kind")


def _told(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        least, most = value
        return f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return "unknown: the footers do not tell" if value is None else str(value)


def _calibrated(plan: Plan, settings: RunSettings) -> tuple[list[Receipt], int]:
    configure(verbose=False)
    from wordmask.flows.execution.calibrate import calibrate as time_shards

    silence_libraries()
    try:
        return time_shards(plan, settings)
    except KeyboardInterrupt:
        _complain("stopped", RESUME)
        raise SystemExit(130) from None


def _previewed(
    plan: Plan, settings: RunSettings, count: int, seed: int, sheet: Path | None
) -> dict[str, Any]:
    from wordmask.tasks.review.overlay import png_bytes
    from wordmask.tasks.review.preview import preview as answer_some
    from wordmask.tasks.storage import Store
    from wordmask.tasks.worker import load_segmenter

    page, rows = answer_some(
        plan, settings, load_segmenter(settings.model, settings.segment), count, seed
    )
    store = Store.open(settings.output)
    path = sheet or Path(
        f"{store.root if store.is_local else store.root.rsplit('/', 1)[-1]}-preview.png"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(page))
    return {"sheet": str(path), "seed": seed, "rows": [dataclasses.asdict(row) for row in rows]}


@app.command()
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
    if not found.runs:
        out.print(
            f"{output}: no published run; {_count(found.shards, 'shard')} done. [dim]`wordmask run`"
            " takes up what is left.[/dim]"
        )
        return
    out.print(
        f"[bold]{output}[/bold]: {_count(len(found.runs), 'published run')},"
        f" {_count(found.shards, 'shard')}",
        end="",
    )
    out.print(f", {found.unpublished:,} of them in no published run" if found.unpublished else "")
    for summary in found.runs:
        out.print(summary_table(summary))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@app.command()
def models(
    costs: Annotated[
        bool,
        typer.Option(
            "--costs",
            help="Instead: FLOPs, bytes and memory of the full-size model, rows/s by arithmetic.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Say which models there are and what each was trained on.

    Example: [bold]wordmask models --json[/bold]
    """
    from wordmask.model.hub.registry import PUBLISHED_MODEL, list_models

    if costs:
        from wordmask.model.costs.roofline import all_costs
        from wordmask.model.costs.stages import Workload
        from wordmask.model.nn.config import MoondreamSegmentationConfig

        found = all_costs(MoondreamSegmentationConfig(), Workload())
        if json:
            print_json({"model": PUBLISHED_MODEL, "measured": False} | dataclasses.asdict(found))
        else:
            out.print(costs_table(PUBLISHED_MODEL, found))
        return
    cards = list_models()
    if json:
        print_json([dataclasses.asdict(card) for card in cards])
        return
    for card in cards:
        rows = [
            ("what", card.description),
            ("trained on", card.trained_on),
            ("parameters", f"{card.parameters:,}"),
            ("size", f"{card.size_bytes / 1e6:,.1f} MB"),
        ]
        rows += [(name, _measured(value)) for name, value in card.results.items()]
        rows += [("source", card.results_source)]
        out.print(two_columns(card.name, rows))


def _measured(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_measured(part)}" for name, part in value.items())
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"


@app.command()
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
    out.print(
        two_columns(
            "scores",
            [
                (name, f"{value:.4f}" if isinstance(value, float) else f"{value:,}")
                for name, value in scores.items()
                if value is not None
            ],
        )
    )


@app.command()
def scenes(
    dest: Annotated[
        str, typer.Argument(metavar="DEST.parquet", help="Table to write.", show_default=False)
    ],
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, max=99, help="Tables of different seeds share no scene.")
    ] = 0,
    queries_per_image: Annotated[
        int, typer.Option(min=1, max=8, help="Expressions about each scene.")
    ] = 1,
    split: Annotated[
        Literal["train", "val", "test", "test-style", "test-relation"],
        typer.Option(
            help=(
                "Which seeds, artwork and kinds of expressions; the default model was trained on"
                " those of train."
            )
        ),
    ] = "test",
    sprites: Annotated[
        Literal["fetched", "shipped"],
        typer.Option(
            help="Things to draw: 36 shipped ones, or those of `wordmask train scenes --fetch`."
        ),
    ] = "shipped",
    json: Json = False,
) -> None:
    """Draw synthetic scenes of everyday things with expressions and ground truth, by default from
    seeds that the default model never saw.

    Where an expression names nothing in its scene, the truth is an empty mask.

    Example: [bold]wordmask scenes scenes.parquet --count 500 --seed 1[/bold]
    """
    from wordmask.tasks.convert.scenes import export_scenes

    with counting(count) as tell:
        written = export_scenes(
            dest,
            count=count,
            seed=seed,
            queries_per_image=queries_per_image,
            split=split,
            sprites=sprites,
            tell=tell,
        )
    if json:
        print_json({"rows": written, "dest": dest})
    else:
        out.print(f"wrote {written:,} rows to {dest}")


@train_app.command("scenes")
def train_scenes(
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Get the artwork with npm, render it, and keep it in the cache folder."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Say what there is to draw training scenes from: how many things, in whose artwork, under
    which licences.

    With --fetch, get it first: 7 MB of npm packages, pinned by checksum, from whichever registry
    your npm is set to. Needs npm and `pip install 'wordmask\\[scenes]'`.

    Example: [bold]wordmask train scenes --fetch[/bold]
    """
    from wordmask.tasks.convert.sprites import fetch_sprites, sprites_at_hand

    if fetch:
        with steps("rendering") as tell:
            found = fetch_sprites(tell)
    else:
        found = sprites_at_hand()
    if json:
        print_json(dataclasses.asdict(found))
        return
    rows = [
        ("file", f"{found.path}, {found.size_bytes / 1e6:.1f} MB"),
        ("sprites", f"{found.sprites:,} of {found.nouns:,} nouns"),
    ]
    rows += [
        (style["name"], f"{style['author']}, {style['licence']}, {style['link']}")
        for style in found.styles
    ]
    out.print(two_columns("stored" if fetch else "sprites", rows))


@train_app.command("run")
def train_run(
    out_folder: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Folder of checkpoints, logs and models.", show_default=False
        ),
    ],
    scenes: Annotated[
        Literal["fetched", "shipped"], typer.Option(help="Artwork of the scenes.")
    ] = "fetched",
    init: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model folder to start from, instead of fresh weights."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model of any size to adapt by LoRA, instead of training the small one."),
    ] = None,
    lora_rank: Annotated[int, typer.Option(min=1, help="Of --model.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    share: Annotated[
        float,
        typer.Option(help="Share of each stage's steps, up to 1: small to see whether all runs."),
    ] = 1.0,
    test_rows: Annotated[int, typer.Option(min=1, help="Rows of each test split.")] = 1000,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Train a model in the paper's three stages and test what each adds. Run it again to go on
    where it was stopped.

    The model is in OUT/model then. It takes some six hours on one core.

    Example: [bold]wordmask train run runs/ --share 0.001 --test-rows 20 --scenes shipped[/bold]
    """
    configure(verbose)
    from wordmask.flows.train import TrainSettings, train

    start_own_api(verbose)
    table = train(
        TrainSettings(
            out=out_folder,
            scenes=scenes,
            init=init,
            model=model,
            lora_rank=lora_rank,
            device=device,
            share=share,
            test_rows=test_rows,
        )
    )
    if json:
        print_json(table)
    else:
        out.print(training_table(table))


@import_app.command("coco")
def import_coco_command(
    instances: Annotated[
        Path,
        typer.Argument(
            metavar="INSTANCES.json",
            exists=True,
            dir_okay=False,
            help="COCO instances.",
            show_default=False,
        ),
    ],
    dest: Annotated[
        str, typer.Argument(metavar="DEST.parquet", help="Table to write.", show_default=False)
    ],
    images: Annotated[
        Path,
        typer.Option(
            exists=True, file_okay=False, help="Folder of the image files.", show_default=False
        ),
    ],
    expressions: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="JSON lines: ref_id, image_id, annotation_id, expression.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write COCO instances as an input table with ground truth. Without expressions, each
    category's name is the query.

    Example: [bold]wordmask import coco instances.json --images images/ --expressions
    referring.jsonl coco.parquet[/bold]
    """
    from wordmask.tasks.convert.coco import import_coco

    with counting(None) as tell:
        done = import_coco(instances, images, dest, expressions=expressions, tell=tell)
    if json:
        print_json(dataclasses.asdict(done))
        return
    out.print(f"wrote {done.rows:,} rows to {dest}")
    if done.missing_images:
        err.print(
            f"[yellow]{done.missing_images:,} rows have no image file in {images}; a run will"
            " reject them[/yellow]"
        )


@app.command()
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
    from wordmask.tasks.review.overlay import sheet as draw_sheet
    from wordmask.tasks.storage import Store

    page = draw_sheet(Store.open(output), count)
    png.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(png_bytes(page))
    if json:
        print_json({"png": str(png), "width": page.width, "height": page.height})
    else:
        out.print(f"wrote {png} ({page.width} x {page.height} pixels)")


def main() -> None:
    """Entry point: errors become one message on standard error. Exit code 2: the call or the input;
    1: the run.
    """
    try:
        with redacted_errors():
            app()
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print an error a person can act on; the exit code. One that is not foreseen keeps its
    traceback.
    """
    from pydantic import ValidationError

    from wordmask.tasks.storage import STORE_ERRORS

    if isinstance(error, ValidationError):
        _complain(
            "error",
            "; ".join(
                f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}"
                for e in error.errors()
            ),
        )
        return 2
    # ImportError: of a file system whose library is not installed
    if isinstance(error, (ValueError, FileNotFoundError, PermissionError, ImportError)):
        _complain("error", str(error))
        return 2
    if isinstance(error, (RuntimeError, *STORE_ERRORS)) or type(error).__module__.startswith(
        "botocore"
    ):
        _complain("failed", str(error))
        return 1
    raise error


def _complain(kind: str, message: str) -> None:
    message = without_credentials(message)
    if is_asked(LOG_JSON):
        logger.error(message, extra={"kind": kind})
        return
    err.print(Text.assemble((f"{kind}: ", "bold red"), message), soft_wrap=True)


if __name__ == "__main__":
    main()
