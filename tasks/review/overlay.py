"""Masks drawn over their images, for a person to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import RunSummary, Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.decode import decode
from wordmask.tasks.images.fetch import image_bytes
from wordmask.tasks.output.catalog import newest_run, read_receipts
from wordmask.tasks.output.results import read_masks
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import read_rows
from wordmask.tasks.table.row_groups import ReaderCache

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (255, 30, 120),
    (0, 215, 255),
    (255, 200, 0),
    (130, 255, 40),
    (255, 255, 255),
)
DIM = 0.55  # brightness of what is not the object
FILL = 0.12  # opacity of the colour on it: little, so that a red circle stays red
PIXELS_PER_STROKE = 450  # the outline is that much finer than the picture is long
RING = 9  # pixels around the object that its outline is seen against
INK, FAINT, PAPER = (245, 245, 247), (160, 160, 170), (24, 24, 28)
TILE = 300  # pixels, longer side of a picture on the sheet
GAP = 14
MARGIN = 2  # pixels left of the words
TITLE, NOTE = 15, 12  # pixels, sizes of type
TITLE_LINES = 2
CAPTION = 64  # pixels, height


def overlay(
    image_HW3: Pixels, mask_HW: Pixels, title: str, note: str, *, side: int = 900
) -> Image.Image:
    """One captioned picture, the longer side of its image `side` pixels."""
    scale = side / max(image_HW3.shape[:2])
    size = (max(1, round(image_HW3.shape[1] * scale)), max(1, round(image_HW3.shape[0] * scale)))
    image = cv2.resize(
        image_HW3, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    # Interpolated and thresholded, a small mask is enlarged without stairs.
    mask = (cv2.resize(mask_HW * np.float32(1), size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(
        np.uint8
    )
    page = Image.new("RGB", (size[0], size[1] + CAPTION), PAPER)
    page.paste(Image.fromarray(draw_mask(image.astype(np.uint8), mask)), (0, 0))
    _caption(page, size[1], title, note)
    return page


def draw_mask(image_HW3: Pixels, mask_HW: Pixels) -> Pixels:
    """The object in its own light, outlined, all else dimmed. An empty mask leaves the image as it
    is.
    """
    if not mask_HW.any():
        return image_HW3.copy()
    colour = standout(image_HW3, mask_HW)
    inside = mask_HW.astype(bool)
    light = image_HW3.astype(np.float32)
    light[~inside] *= DIM
    light[inside] += FILL * (np.array(colour, np.float32) - light[inside])
    canvas: Pixels = np.ascontiguousarray(light.round().astype(np.uint8))
    outlines, _ = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask_HW.shape) / PIXELS_PER_STROKE))
    # Dark under light: the outline shows on any ground.
    cv2.drawContours(canvas, outlines, -1, PAPER, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    return canvas


def standout(image_HW3: Pixels, mask_HW: Pixels) -> Colour:
    """The colour that differs most, to the eye (Lab), from the object and from what lies around
    it.
    """
    grown = cv2.dilate(mask_HW, np.ones((2 * RING + 1, 2 * RING + 1), np.uint8))
    lab = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2LAB).astype(np.float32)
    grounds = [
        lab[where].mean(axis=0)
        for where in (mask_HW > 0, (grown > 0) & (mask_HW == 0))
        if where.any()
    ]
    palette = cv2.cvtColor(np.array([COLOURS], np.uint8), cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    distance = [
        min((float(np.linalg.norm(colour - ground)) for ground in grounds), default=0.0)
        for colour in palette
    ]
    return COLOURS[int(np.argmax(distance))]


def contact_sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Captioned pictures whose images' longer side is `TILE` on one sheet, captions in line."""
    columns = sheet_columns(len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + GAP for row in rows]
    page = Image.new("RGB", (columns * (TILE + GAP) + GAP, sum(heights) + GAP), PAPER)
    bottom = GAP
    for row, height in zip(rows, heights, strict=True):
        bottom += height
        for column, tile in enumerate(row):
            page.paste(tile, (GAP + column * (TILE + GAP), bottom - GAP - tile.height))
    return page


def sheet_columns(count: int) -> int:
    """Columns of a sheet that is wider than high, and leaves the fewest places empty."""
    least = math.ceil(math.sqrt(max(count, 1)))
    return min(
        range(least, max(least, round(1.5 * math.sqrt(count))) + 1),
        key=lambda columns: (-count % columns, columns),
    )


def _caption(page: Image.Image, top: int, title: str, note: str) -> None:
    draw = ImageDraw.Draw(page)
    font, small = ImageFont.load_default(size=TITLE), ImageFont.load_default(size=NOTE)
    y = top + 4
    for line in _wrap(draw, title, font, page.width - 2 * MARGIN):
        draw.text((MARGIN, y), line, fill=INK, font=font)
        y += TITLE + 3
    draw.text(
        (MARGIN, y + 2), _cut(draw, note, small, page.width - 2 * MARGIN), fill=FAINT, font=small
    )


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> list[str]:
    """At most `TITLE_LINES` lines of at most `width` pixels, the last cut with an ellipsis if more
    would follow.
    """
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < TITLE_LINES - 1:
        taken = 1
        while (
            taken < len(words) and draw.textlength(" ".join(words[: taken + 1]), font=font) <= width
        ):
            taken += 1
        lines.append(_cut(draw, " ".join(words[:taken]), font, width))
        words = words[taken:]
    return [*lines, _cut(draw, " ".join(words), font, width)] if words else lines


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def note_of(row: Mapping[str, Any]) -> str:
    """What a caption says of a mask row's scores."""
    if row["status"] == "absent":
        return "absent"
    parts = (
        [f"predicted IoU {row['predicted_iou']:.2f}"]
        if row["predicted_iou"] is not None
        else ["coarse mask"]
    )
    parts += [f"trust {row['trust']:.2f}"] if row["trust"] is not None else []
    return "  ·  ".join(parts)


def sheet(output: Store, count: int) -> Image.Image:
    """Contact sheet of `count` mask rows of the newest published run, spread evenly over it.

    Raises:
        FileNotFoundError: nothing was published at the output.
        InputError: the run has no masks.
        InputChangedError: an input file was replaced since it was segmented.
    """
    run = newest_run(output)
    if run.masks == 0:
        raise InputError(
            f"output {output.uri}: run {run.run_id} has no masks, only {run.rows} rejects; see the"
            " rejects table for the reasons"
        )
    return contact_sheet(
        [
            tile
            for shard, rows in _spread(output, run, count)
            for tile in _tiles(shard, rows, run.settings.segment)
        ]
    )


def _spread(
    output: Store, run: RunSummary, count: int
) -> Iterator[tuple[Shard, list[dict[str, Any]]]]:
    """Evenly spaced mask rows of a run by shard. Only parts that hold one are read."""
    wanted = sorted({round(at) for at in np.linspace(0, run.masks - 1, min(count, run.masks))})
    first = 0
    for shard_id, part in zip(run.shard_ids, run.masks_parts, strict=True):
        here = [at - first for at in wanted if first <= at < first + part.rows]
        first += part.rows
        if here:
            (receipt,) = read_receipts(output, [shard_id])
            rows = list(
                read_masks(
                    output, part, ["row", "query", "status", "mask", "predicted_iou", "trust"]
                )
            )
            yield receipt.shard, [rows[at] for at in here]


def _tiles(
    shard: Shard, rows: Sequence[Mapping[str, Any]], settings: SegmentSettings
) -> Iterator[Image.Image]:
    """Pictures of mask rows of one shard; their images are read from the input again."""
    inputs = {row.position: row for row in _read(shard, settings)}
    for row in rows:
        data = image_bytes(inputs[row["row"]], shard, settings)
        yield overlay(
            decode(data, settings), rle.decode(row["mask"]), row["query"], note_of(row), side=TILE
        )


def _read(shard: Shard, settings: SegmentSettings) -> list[Row]:
    readers = ReaderCache()
    try:
        return read_rows(Store.open(shard.file), shard, settings, readers)[0]
    finally:
        readers.close()


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
