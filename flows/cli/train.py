"""Commands of training: train scenes, train run."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from wordmask.flows.cli.console import out, print_json, steps, training_table, two_columns
from wordmask.flows.cli.options import Json, Verbose, settings_options
from wordmask.flows.prefect_api import configure, start_own_api
from wordmask.schemas.training import TrainSettings


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
