"""Commands that write input tables: scenes, import coco."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from wordmask.flows.cli.console import counting, err, out, print_json
from wordmask.flows.cli.options import Json, option_of
from wordmask.schemas.settings import SegmentSettings
from wordmask.schemas.training import SCENES_PER_SEED, Artwork

Table = Annotated[
    str, typer.Argument(metavar="DEST.parquet", help="Table to write.", show_default=False)
]
AllowRoot = Annotated[list[str] | None, option_of(SegmentSettings, "allow_root")]


def scenes(
    dest: Table,
    count: Annotated[int, typer.Option(min=1, max=SCENES_PER_SEED, help="Rows.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, max=99, help="Tables of different seeds share no scene.")
    ] = 0,
    queries_per_image: Annotated[
        int, typer.Option(min=1, max=8, help="Expressions about each scene.")
    ] = 1,
    split: Annotated[
        Literal["train", "val", "test", "test-style", "test-relation"],
        typer.Option(
            help="Which seeds, artwork and kinds of expressions; the default model was trained on"
            " those of train."
        ),
    ] = "test",
    sprites: Annotated[
        Artwork,
        typer.Option(
            help="Things to draw: 36 shipped ones, or those of `wordmask train scenes --fetch`."
        ),
    ] = "shipped",
    json: Json = False,
) -> None:
    """Draw synthetic scenes of everyday things with expressions and ground truth.

    By default from seeds that the default model never saw. Where an expression names nothing in its
    scene, the truth is an empty mask.

    Example: [bold]wordmask scenes scenes.parquet --count 500 --seed 1[/bold]
    """
    from wordmask.tasks.convert.scenes import export_scenes

    with counting(count) as on_rows:
        written = export_scenes(
            dest,
            count=count,
            seed=seed,
            queries_per_image=queries_per_image,
            split=split,
            sprites=sprites,
            on_rows=on_rows,
        )
    if json:
        print_json({"rows": written, "dest": dest})
    else:
        out.print(f"wrote {written:,} rows to {dest}")


def import_coco(
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
    dest: Table,
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
    allow_root: AllowRoot = None,
    json: Json = False,
) -> None:
    """Write COCO instances as an input table with ground truth.

    Without expressions, each category's name is the query.

    Example: [bold]wordmask import coco instances.json --images images/ --expressions \\
    referring.jsonl coco.parquet[/bold]
    """
    from wordmask.tasks.convert import coco

    with counting(None) as on_rows:
        done = coco.import_coco(
            instances,
            images,
            dest,
            expressions=expressions,
            allow_roots=allow_root or (),
            on_rows=on_rows,
        )
    if json:
        print_json(dataclasses.asdict(done))
        return
    out.print(f"wrote {done.rows:,} rows to {dest}")
    if done.missing_images:
        err.print(
            f"[yellow]{done.missing_images:,} rows have no image file in {images}; a run will"
            " reject them[/yellow]"
        )
