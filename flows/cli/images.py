"""The command for one image: segment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wordmask.flows.cli.console import out, print_json, two_columns
from wordmask.flows.cli.options import Fields, Json, settings_options
from wordmask.schemas.settings import PILLOW_PIXELS, ModelSettings, SegmentSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wordmask.model.types import Segmentation

OF_ONE_IMAGE = ("dtype", "refiner_iterations", "early_stop", "grammar", "path_style")


@settings_options
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
    *,
    model: ModelSettings,
    method: Annotated[SegmentSettings, Fields(only=OF_ONE_IMAGE)],
    json: Json = False,
) -> None:
    """Segment one image.

    Example: [bold]wordmask segment scene.png "the dog left of the red car" --overlay out.png[/bold]
    """
    points = [_numbers("--point", text, 2) for text in point or ()]
    boxes = [_numbers("--box", text, 4) for text in box or ()]
    spatial_refs = (*points, *boxes)
    pixels = _read_image(image)
    found = _answer(pixels, expression, spatial_refs, model, method)
    if overlay is not None:
        _write_overlay(overlay, pixels, expression, found)
    if json:
        _print_fields(found)
        return
    rows = _summary(found)
    if overlay is not None:
        rows.append(("overlay", str(overlay)))
    out.print(two_columns(f"“{expression}” in {image.name}", rows))


def _answer(
    image_HW3: NDArray[np.uint8],
    expression: str,
    spatial_refs: tuple[tuple[float, ...], ...],
    model: ModelSettings,
    method: SegmentSettings,
) -> Segmentation:
    # Importing PyTorch takes seconds: errors of the arguments come before.
    from wordmask.model.segmenter import Segmenter
    from wordmask.model.types import Query

    segmenter = Segmenter.from_pretrained(**model.model_dump(), **method.method)
    segmenter.check_query(expression, spatial_refs)
    query = Query(image=0, object=expression, spatial_refs=spatial_refs)
    (found,) = segmenter.segment_many([image_HW3], [query])
    return found


def _print_fields(found: Segmentation) -> None:
    fields = dict(vars(found))
    fields.pop("mask", None)  # decoded from the RLE, if anyone asked for it
    fields["mask"] = found.rle
    print_json(fields)


def _summary(found: Segmentation) -> list[tuple[str, str]]:
    height, width = found.mask.shape
    x, y, w, h = found.bbox
    rows = [
        ("status", found.status),
        ("mask", f"{found.area:,} of {height * width:,} pixels"),
        ("box", f"x {x}, y {y}, {w} x {h} pixels"),
    ]
    for name in ("predicted_iou", "trust"):
        score = getattr(found, name)
        if score is not None:
            rows.append((name.replace("_", " "), f"{score:.3f}"))
    return rows


def _write_overlay(
    path: Path, image_HW3: NDArray[np.uint8], expression: str, found: Segmentation
) -> None:
    from wordmask.tasks.review.overlay import note_of, overlay, png_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = overlay(image_HW3, found.mask, expression, note_of(vars(found)))
    path.write_bytes(png_bytes(picture))


def _read_image(path: Path) -> NDArray[np.uint8]:
    from wordmask.tasks.images.decode import decode
    from wordmask.tasks.images.uris import ImageError

    data = path.read_bytes()
    # A person who names one file means it: only what Pillow itself refuses is too large.
    limits = SegmentSettings(max_image_pixels=PILLOW_PIXELS, max_image_bytes=max(1, len(data)))
    try:
        return decode(data, limits)
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
