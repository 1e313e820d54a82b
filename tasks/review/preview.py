"""A preview of a run: random rows of a plan, answered and drawn.

Nothing is written to the output.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan, RowRange, Shard
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.context import SegmenterLike, ShardContext
from wordmask.tasks.images.decode import decode
from wordmask.tasks.images.fetch import image_bytes
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.infer.turns import end_rows
from wordmask.tasks.review.overlay import PAPER, note_of, overlay
from wordmask.tasks.review.sheet import TILE, contact_sheet
from wordmask.tasks.rows import Mask, Reject
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import read_rows

BLANK_SHAPE = (TILE * 3 // 4, TILE)  # of the picture of a rejected row


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """A row and how it ended: "mask", "absent", or the code of its reject.

    `row` is its position in the file.
    """

    file: str
    row: int
    row_id: str
    query: str | None
    ended: str
    note: str


def preview(
    plan: Plan, settings: RunSettings, segmenter: SegmenterLike, count: int, seed: int = 0
) -> tuple[Image.Image, list[Previewed]]:
    """Answer `count` random rows of a plan, and return them as a contact sheet and as records.

    They are rows of pending shards, or of all shards where none is pending.

    Raises:
        InputError: the plan has no rows.
        InputChangedError: an input file was replaced since it was planned.
    """
    tiles: list[Image.Image] = []
    previewed: list[Previewed] = []
    context = ShardContext(segmenter)
    for shard in random_rows(plan, count, seed):
        result = _answer(shard, settings, context)
        if isinstance(result, Mask):
            ended = result.segmentation.status
            note = note_of(vars(result.segmentation))
        else:
            ended = result.code.value
            note = f"rejected: {ended}"
        row = Previewed(
            file=shard.name,
            row=shard.first_row,
            row_id=result.row.row_id,
            query=result.row.query,
            ended=ended,
            note=note,
        )
        previewed.append(row)
        client = HttpsClient.of(settings, context.host_limits)
        tiles.append(_picture(result, shard, settings.segment, client, note))
    if not tiles:
        raise InputError(f"input {settings.input}: has no rows to preview. Check the path")
    return contact_sheet(tiles), previewed


def _answer(shard: Shard, settings: RunSettings, context: ShardContext) -> Mask | Reject:
    """Return the result of a shard of one row."""
    table = Store.open(shard.file)
    rows, _ = read_rows(table, shard, settings.segment, context.readers)
    (result,) = end_rows(rows, shard, settings, context).results
    return result


def random_rows(plan: Plan, count: int, seed: int) -> Iterator[Shard]:
    """Yield different random rows of a plan, each as a shard of its own, in the order of the input.

    The same seed gives the same rows.
    """
    shards = plan.pending or plan.shards
    rows = sum(shard.rows for shard in shards)
    wanted = sorted(random.Random(seed).sample(range(rows), min(count, rows)))
    first = 0
    for shard in shards:
        for index in wanted:
            if first <= index < first + shard.rows:
                yield _row_of(shard, index - first)
        first += shard.rows


def _row_of(shard: Shard, position: int) -> Shard:
    """Return one row of a shard as a shard."""
    before = 0
    for part in shard.ranges:
        row = part.start + position - before
        if row < part.stop:
            only = {
                "ranges": (RowRange(part.row_group, row, row + 1),),
                "first_row": shard.first_row + position,
                "duplicates": (0,) if position in shard.duplicates else (),
            }
            return shard.model_copy(update=only)
        before += part.stop - part.start
    raise IndexError(f"shard {shard.shard_id} has {shard.rows} rows, no row {position}")


def _picture(
    result: Mask | Reject, shard: Shard, settings: SegmentSettings, client: HttpsClient, note: str
) -> Image.Image:
    query = result.row.query or ""
    if isinstance(result, Reject):
        blank = np.full((*BLANK_SHAPE, 3), PAPER, np.uint8)
        return overlay(blank, np.zeros(BLANK_SHAPE, np.uint8), query, note, side=TILE)
    image = decode(image_bytes(result.row, shard, settings, client).data, settings)
    return overlay(image, result.segmentation.mask, query, note, side=TILE)
