"""Commands of training: train scenes, run, sft, rl, refiner, export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wordmask.flows.cli.console import out, print_json, steps, training_table, two_columns
from wordmask.flows.cli.options import Json, Verbose, settings_options
from wordmask.flows.prefect_api import configure, start_own_api
from wordmask.model.train.refiner.config import RefinerSettings
from wordmask.model.train.rl.config import RlSettings
from wordmask.model.train.sft.config import SftSettings
from wordmask.schemas.training import TrainSettings

if TYPE_CHECKING:
    import torch


def scenes(
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Get the artwork with npm, render it, and keep it in the cache folder."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Say what training scenes are drawn from: how many things, whose artwork, which licences.

    With --fetch, get it first: 7 MB of npm packages, pinned by checksum, from whichever registry
    your npm is set to. Needs npm and `pip install 'wordmask\\[scenes]'`.

    Example: [bold]wordmask train scenes --fetch[/bold]
    """
    from wordmask.tasks.convert.sprites import fetch_sprites, sprites_at_hand

    title = "sprites"
    if fetch:
        title = "stored"
        with steps("rendering") as on_step:
            found = fetch_sprites(on_step)
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
    out.print(two_columns(title, rows))


@settings_options
def run(settings: TrainSettings, *, verbose: Verbose = False, json: Json = False) -> None:
    """Train a model in the paper's three stages and test what each adds.

    Run it again to go on where it was stopped. The model is in OUT/model then. It takes some six
    hours on one core.

    Example: [bold]wordmask train run runs/ --share 0.001 --test-rows 20 --scenes shipped[/bold]
    """
    configure(verbose)
    from wordmask.flows.train import train

    start_own_api(verbose)
    table = train(settings)
    if json:
        print_json(table)
    else:
        out.print(training_table(table))


Out = Annotated[
    Path, typer.Option(help="Folder of checkpoints and log; an existing one is resumed.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of this process.")]


@settings_options
def sft(
    settings: SftSettings,
    *,
    out: Out,
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model that a new run starts from.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = 2,
) -> None:
    """Train stage 1: supervised path decoding.

    Run it again with the same --out to go on where it was stopped.

    Example: [bold]wordmask train sft --out runs/sft --scenes shipped[/bold]
    """
    from wordmask.model.train.sft.train import train

    train(out, settings, init, _own_device(device, threads))


@settings_options
def rl(
    settings: RlSettings,
    *,
    init: Annotated[
        str, typer.Option(metavar="MODEL", help="Model to start from, and to stay near.")
    ],
    out: Out,
    device: Device = "cpu",
    threads: Threads = 2,
) -> None:
    """Train stage 2: reinforcement learning on mask quality.

    Run it again with the same --out to go on where it was stopped.

    Example: [bold]wordmask train rl --init demo --out runs/rl[/bold]
    """
    from wordmask.model.train.rl.train import train

    train(out, settings, init, _own_device(device, threads))


@settings_options
def refiner(
    settings: RefinerSettings,
    *,
    decoder: Annotated[
        Path, typer.Option("--sft", help="Folder of stage 1 or 2, whose decoder draws.")
    ],
    out: Out,
    device: Device = "cpu",
    threads: Threads = 2,
) -> None:
    """Train stage 3: the refiner head, on masks that the decoder draws.

    Run it again with the same --out to go on where it was stopped.

    Example: [bold]wordmask train refiner --sft runs/rl --out runs/refiner[/bold]
    """
    from wordmask.model.train.refiner.train import train

    train(decoder, out, settings, _own_device(device, threads))


def export(
    decoder: Annotated[Path, typer.Option("--sft", help="Folder of stage 1 or 2.")],
    dest: Annotated[Path, typer.Option(help="Model folder to write.")],
    refiner: Annotated[
        Path | None, typer.Option(help="Folder of stage 3; without it the head is untrained.")
    ] = None,
) -> None:
    """Make a model folder of training checkpoints.

    Example: [bold]wordmask train export --sft runs/rl --refiner runs/refiner --dest model[/bold]
    """
    from wordmask.model.nn.moondream import parameter_count
    from wordmask.model.train.export import export_model

    model = export_model(decoder, refiner, dest)
    print(f"{parameter_count(model) / 1e6:.2f} M parameters in {dest}")


def _own_device(device: str, threads: int) -> torch.device:
    """Return the device of this process, which may be one of several that torchrun started."""
    import torch

    from wordmask.model.train.processes import join_processes

    torch.set_num_threads(threads)
    return join_processes(device)
