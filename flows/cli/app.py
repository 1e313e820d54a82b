"""The command line: its commands, and how it ends when one of them fails.

Each command reads its arguments, calls a flow or a task, and prints the result. Heavy libraries are
imported inside the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from wordmask.flows.cli import data, images, models, outputs, plan, runs, train
from wordmask.flows.cli.console import complain
from wordmask.tasks.telemetry.logs import redacted_errors

app = typer.Typer(
    name="wordmask",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Words in, masks out, for whole tables of images.",
)
COMMANDS = (
    images.segment,
    runs.run,
    runs.retry,
    runs.schedule,
    outputs.verify,
    outputs.rejects,
    outputs.gc,
    plan.plan,
    outputs.status,
    models.models,
    outputs.evaluate,
    data.scenes,
    outputs.sheet,
)
for command in COMMANDS:
    app.command()(command)

import_app = typer.Typer(no_args_is_help=True, help="Turn data sets into input tables.")
import_app.command("coco")(data.import_coco)
app.add_typer(import_app, name="import")

train_app = typer.Typer(no_args_is_help=True, help="What training the default model needs.")
train_app.command("scenes")(train.scenes)
train_app.command("run")(train.run)
train_app.command("sft")(train.sft)
train_app.command("rl")(train.rl)
train_app.command("refiner")(train.refiner)
train_app.command("export")(train.export)
app.add_typer(train_app, name="train")


def main() -> None:
    """Run the command line; errors become one message on standard error.

    The exit code is 2 for an error of the call or the input, 1 for one of the run, 3 for a run that
    was published with gaps.
    """
    try:
        with redacted_errors():
            app()
    except Exception as error:
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Print an error that a person can act on and return the exit code; raise any other."""
    from wordmask.tasks.storage import STORE_ERRORS

    if isinstance(error, ValidationError):
        complain("error", _invalid_values(error))
        return 2
    # ImportError: the library of a file system is not installed.
    if isinstance(error, (ValueError, FileNotFoundError, PermissionError, ImportError)):
        complain("error", str(error))
        return 2
    is_of_store = type(error).__module__.startswith("botocore")
    if is_of_store or isinstance(error, (RuntimeError, *STORE_ERRORS)):
        complain("failed", str(error))
        return 1
    raise error


def _invalid_values(error: ValidationError) -> str:
    values = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"]))
        values.append(f"{field} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(values)


if __name__ == "__main__":
    main()
