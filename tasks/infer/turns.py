"""Rows of a shard in turns: of rows with one row_id, the first that can be answered is answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.infer.checks import check_rows
from wordmask.tasks.infer.stage import infer_rows
from wordmask.tasks.output.reuse import Earlier
from wordmask.tasks.rows import Mask, Reject, Row, RowResult, ShardResult


def end_rows(
    rows: Sequence[Row],
    shard: Shard,
    settings: RunSettings,
    context: ShardContext,
    *,
    settled: Sequence[RowResult] = (),
    reusable: Mapping[str, Earlier] = MappingProxyType({}),
    wanted_since: float | None = None,
) -> ShardResult:
    """End every row as a mask or a reject, and add the results that are settled already.

    Rows whose id an earlier row of the shard has wait until that row has ended. If it was rejected,
    the next one has its turn. Whether a row of an earlier shard was rejected is not known here: its
    id counts as answered.

    Args:
        rows: rows of the shard that are open, in order.
        shard: the shard.
        settings: of the run.
        context: the model, and what shards share.
        settled: how the other rows of the shard end.
        reusable: as in `infer_rows`, and so is `wanted_since`.

    Raises:
        Exception: as `infer_rows`.
    """
    answered = ids_of_earlier_shards([*rows, *(result.row for result in settled)], shard)
    answered |= _ids(result for result in settled if isinstance(result, Mask))
    ended = ShardResult.of(settled)
    waiting = list(rows)
    while turn := _first_of_each_id(waiting, answered):
        sound, unsound = check_rows(turn, context.segmenter)
        inferred = infer_rows(
            sound, shard, settings, context, reusable=reusable, wanted_since=wanted_since
        )
        ended = ended.plus(inferred).including(unsound)
        answered |= _ids(inferred.masks)
        began = {row.position for row in turn}
        waiting = [row for row in waiting if row.position not in began]
        wanted_since = None
    return ended.including(_reject_repeat(row) for row in waiting)


def ids_of_earlier_shards(rows: Iterable[Row], shard: Shard) -> set[str]:
    """Return the ids of the shard's rows that rows before the shard have, too."""
    if not shard.duplicates:
        return set()
    first: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.position):
        first.setdefault(row.row_id, row.position)
    return {row_id for row_id, position in first.items() if position in shard.duplicates}


def _first_of_each_id(rows: Iterable[Row], answered: set[str]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        if row.row_id not in answered:
            first.setdefault(row.row_id, row)
    return [*first.values()]


def _ids(results: Iterable[RowResult]) -> set[str]:
    return {result.row.row_id for result in results}


def _reject_repeat(row: Row) -> Reject:
    detail = f"row_id = {row.row_id!r} stands in an earlier row"
    return Reject(row=row, code=RejectCode.DUPLICATE_ROW_ID, detail=detail)
