"""Masks drawn over their images, for a person to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model import rle
from schemas.settings import SegmentSettings
from tasks.images import decode, fetch
from tasks.read import read_rows
from tasks.results import read_masks
from tasks.storage import Store
from tasks.summarize import newest_run, read_receipts

Pixels = NDArray[np.uint8]

COLOURS = ((255, 45, 130), (0, 200, 255), (255, 190, 0), (120, 255, 60), (190, 110, 255), (255, 110, 60))
FILL = 0.38  # opacity of the mask
INK, PAPER = (245, 245, 247), (24, 24, 28)
TILE = 300  # pixels, side of a tile of the sheet
CAPTION = 44  # pixels, height of its caption
GAP = 10


def draw_mask(image_HW3: Pixels, mask_HW: Pixels, colour: tuple[int, int, int] = COLOURS[0]) -> Pixels:
    """The image with a translucent mask and its outline, light on dark so that it shows on any ground."""
    out = image_HW3.astype(np.float32)
    inside = mask_HW.astype(bool)
    out[inside] = (1 - FILL) * out[inside] + FILL * np.array(colour, np.float32)
    canvas: Pixels = np.ascontiguousarray(out.round().astype(np.uint8))
    width = max(1, round(min(mask_HW.shape) / 200))
    outlines, _ = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, (20, 20, 20), width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    return canvas


def overlay(
    image_HW3: Pixels, mask_HW: Pixels, title: str, note: str, *, side: int = 900, colour: tuple[int, int, int] = COLOURS[0]
) -> Image.Image:
    """One captioned picture, its longer side `side` pixels."""
    scale = side / max(image_HW3.shape[:2])
    size = (max(1, round(image_HW3.shape[1] * scale)), max(1, round(image_HW3.shape[0] * scale)))
    image = cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # Interpolated and thresholded, a small mask is enlarged without stairs.
    mask = (cv2.resize(mask_HW * np.float32(1), size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
    drawn = Image.fromarray(draw_mask(image.astype(np.uint8), mask, colour))
    page = Image.new("RGB", (drawn.width, drawn.height + CAPTION), PAPER)
    page.paste(drawn, (0, 0))
    _caption(page, 0, drawn.height, drawn.width, title, note)
    return page


def contact_sheet(tiles: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Captioned pictures of at most `TILE` pixels' side on one sheet."""
    columns = columns or max(1, min(len(tiles), math.ceil(math.sqrt(len(tiles) * 1.4))))
    rows = max(1, math.ceil(len(tiles) / columns))
    width, height = TILE + GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    for index, tile in enumerate(tiles):
        x, y = GAP + index % columns * width, GAP + index // columns * height
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE + CAPTION - tile.height) // 2))
    return sheet


def _caption(page: Image.Image, x: int, y: int, width: int, title: str, note: str) -> None:
    draw = ImageDraw.Draw(page)
    draw.text((x + 6, y + 4), _fit(draw, title, _font(15), width - 12), fill=INK, font=_font(15))
    draw.text((x + 6, y + 24), _fit(draw, note, _font(12), width - 12), fill=(160, 160, 170), font=_font(12))


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis if it is wider than `width` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def note_of(row: dict[str, Any]) -> str:
    """What a caption says of a mask row's scores."""
    if row["status"] == "absent":
        return "absent"
    parts = [f"predicted IoU {row['predicted_iou']:.2f}"] if row["predicted_iou"] is not None else ["coarse mask"]
    parts += [f"trust {row['trust']:.2f}"] if row["trust"] is not None else []
    return "  ·  ".join(parts)


def sheet(output_uri: str, count: int) -> Image.Image:
    """Contact sheet of `count` rows of the newest published run, spread evenly over it.

    Raises:
        FileNotFoundError: nothing was published at the output.
        InputChangedError: an input file was replaced since it was segmented.
    """
    output = Store.open(output_uri)
    settings = newest_run(output).settings.segment
    columns = ["query", "status", "mask", "predicted_iou", "trust", "shard_id", "row"]
    found = list(read_masks(output, columns))
    chosen = found[:: max(1, len(found) // count)][:count]
    images = _images(output, {(row["shard_id"], row["row"]) for row in chosen}, settings)
    return contact_sheet(
        [
            overlay(image, rle.decode(row["mask"]), row["query"], note_of(row), side=TILE, colour=COLOURS[index % len(COLOURS)])
            for index, (row, image) in enumerate((row, images[row["shard_id"], row["row"]]) for row in chosen)
        ]
    )


def _images(output: Store, wanted: set[tuple[str, int]], settings: SegmentSettings) -> dict[tuple[str, int], Pixels]:
    """Decoded images of rows given as (shard_id, row), read from the input again."""
    found: dict[tuple[str, int], Pixels] = {}
    for receipt in read_receipts(output, sorted({shard_id for shard_id, _ in wanted})):
        shard = receipt.shard
        for row in read_rows(shard, settings)[0]:
            if (shard.shard_id, row.row) in wanted:
                data = row.image_bytes if row.image_bytes is not None else fetch(str(row.image_uri), shard.file, settings)
                found[shard.shard_id, row.row] = decode(data, settings)
    return found


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
