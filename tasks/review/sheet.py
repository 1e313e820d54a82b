"""Contact sheets: many captioned pictures on one page, such as masks of a published run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.decode import decode
from wordmask.tasks.images.fetch import image_bytes
from wordmask.tasks.images.host_limits import HostLimits
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.output.published import PublishedRun, open_newest_run
from wordmask.tasks.output.results import read_masks
from wordmask.tasks.review.overlay import PAPER, note_of, overlay
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import read_rows
from wordmask.tasks.table.row_groups import ReaderCache

TILE = 300  # pixels, longer side of a picture on the sheet
GAP = 14  # pixels between pictures
SHEET_COLUMNS = ["row", "query", "status", "mask", "predicted_iou", "trust"]


def contact_sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Return a page of captioned pictures whose images' longer side is `TILE`, captions in line."""
    columns = sheet_columns(len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + GAP for row in rows]
    width = columns * (TILE + GAP) + GAP
    height = sum(heights) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    bottom = 0
    for row, row_height in zip(rows, heights, strict=True):
        bottom += row_height
        for column, tile in enumerate(row):
            left = GAP + column * (TILE + GAP)
            top = bottom - tile.height
            page.paste(tile, (left, top))
    return page


def sheet_columns(count: int) -> int:
    """Return the columns of a sheet that is wider than high and has the fewest empty cells."""
    side = math.sqrt(max(count, 1))
    least = math.ceil(side)
    most = max(least, round(1.5 * side))
    return min(range(least, most + 1), key=lambda columns: (-count % columns, columns))


def sheet(output: Store, count: int) -> Image.Image:
    """Return a sheet of `count` mask rows of the newest published run, evenly spread over it.

    Raises:
        FileNotFoundError: nothing was published.
        InputError: the run has no masks.
        InputChangedError: an input file was replaced since it was segmented.
    """
    run = open_newest_run(output)
    head = run.head
    if head.masks == 0:
        raise InputError(
            f"output {output.uri}: run {head.run_id} has no masks, only {head.rows} rejects; see"
            " the rejects table for the reasons"
        )
    tiles: list[Image.Image] = []
    client = HttpsClient.of(head.settings, HostLimits())
    for shard, rows in _spread(output, run, count):
        tiles += _tiles(shard, rows, head.settings.segment, client)
    return contact_sheet(tiles)


def _spread(
    output: Store, run: PublishedRun, count: int
) -> Iterator[tuple[Shard, list[dict[str, Any]]]]:
    """Yield evenly spaced mask rows of a run by shard. Only parts that have one are read."""
    masks = run.head.masks
    evenly = np.linspace(0, masks - 1, min(count, masks))
    wanted = sorted({round(index) for index in evenly})
    first = 0
    for record in run.records():
        end = first + record.masks
        here = [index - first for index in wanted if first <= index < end]
        first = end
        if here:
            rows = list(read_masks(output, record.masks_part, SHEET_COLUMNS))
            yield record.shard, [rows[index] for index in here]


def _tiles(
    shard: Shard,
    rows: Sequence[Mapping[str, Any]],
    settings: SegmentSettings,
    client: HttpsClient,
) -> Iterator[Image.Image]:
    """Yield pictures of mask rows of a shard. Their images are read from the input again."""
    inputs = {row.position: row for row in _read(shard, settings)}
    for row in rows:
        source = inputs[row["row"]]
        data = image_bytes(source, shard, settings, client).data
        image = decode(data, settings)
        mask = rle.decode(row["mask"])
        note = note_of(row)
        yield overlay(image, mask, row["query"], note, side=TILE)


def _read(shard: Shard, settings: SegmentSettings) -> list[Row]:
    readers = ReaderCache()
    try:
        return read_rows(Store.open(shard.file), shard, settings, readers)[0]
    finally:
        readers.close()
