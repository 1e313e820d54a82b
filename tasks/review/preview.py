"""A look at what a run would give: random rows of a plan, answered and drawn. Nothing is written to
the output.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan, RowRange, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import SegmenterLike, ShardContext
from wordmask.tasks.images.decode import decode
from wordmask.tasks.images.fetch import image_bytes
from wordmask.tasks.infer.checks import check_rows
from wordmask.tasks.infer.stage import infer_rows
from wordmask.tasks.review.overlay import PAPER, TILE, contact_sheet, note_of, overlay
from wordmask.tasks.rows import Mask, Reject
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import read_rows

BLANK = np.full(
    (TILE * 3 // 4, TILE, 3), PAPER, np.uint8
)  # in place of the image of a rejected row


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """A row (`row` is its position in the file) and how it ended: "mask", "absent", or the code of
    its reject.
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
    """A contact sheet of `count` random rows of the plan's pending shards, or of all where none is
    pending, and how each ended.

    Raises:
        InputError: the plan has no rows.
        InputChangedError: an input file was replaced since it was planned.
    """
    tiles: list[Image.Image] = []
    rows: list[Previewed] = []
    context = ShardContext(segmenter)
    for shard in random_rows(plan, count, seed):
        table = Store.open(shard.file)
        read, _ = read_rows(table, shard, settings.segment, context.readers)
        sound, unsound = check_rows(read, shard, segmenter)
        result = infer_rows(sound, shard, settings, context).including(unsound)
        (answer,) = result.results
        note, tile = _drawn(answer, shard, settings)
        ended = answer.segmentation.status if isinstance(answer, Mask) else answer.code.value
        rows.append(
            Previewed(
                file=shard.name,
                row=shard.first_row,
                row_id=read[0].row_id,
                query=read[0].query,
                ended=ended,
                note=note,
            )
        )
        tiles.append(tile)
    if not tiles:
        raise InputError(f"input {settings.input}: has no rows to preview. Check the path")
    return contact_sheet(tiles), rows


def random_rows(plan: Plan, count: int, seed: int) -> Iterator[Shard]:
    """Rows drawn without repetition, in the order of the input, each as a shard of its own. The
    same seed draws the same.
    """
    shards = plan.pending or plan.shards
    rows = sum(shard.rows for shard in shards)
    wanted = sorted(random.Random(seed).sample(range(rows), min(count, rows)))
    first = 0
    for shard in shards:
        yield from (_row_of(shard, at - first) for at in wanted if first <= at < first + shard.rows)
        first += shard.rows


def _row_of(shard: Shard, position: int) -> Shard:
    before = 0
    for part in shard.ranges:
        at = part.start + position - before
        if at < part.stop:
            one = {
                "ranges": (RowRange(part.row_group, at, at + 1),),
                "first_row": shard.first_row + position,
            }
            return shard.model_copy(
                update=one | {"duplicates": (0,) if position in shard.duplicates else ()}
            )
        before += part.stop - part.start
    raise IndexError(f"shard {shard.shard_id} has {shard.rows} rows, no row {position}")


def _drawn(answer: Mask | Reject, shard: Shard, settings: RunSettings) -> tuple[str, Image.Image]:
    query = answer.row.query or ""
    if isinstance(answer, Reject):
        note = f"rejected: {answer.code.value}"
        return note, overlay(BLANK, np.zeros(BLANK.shape[:2], np.uint8), query, note, side=TILE)
    note = note_of(vars(answer.segmentation))
    pixels = decode(image_bytes(answer.row, shard, settings.segment), settings.segment)
    return note, overlay(pixels, rle.decode(answer.segmentation.rle), query, note, side=TILE)
