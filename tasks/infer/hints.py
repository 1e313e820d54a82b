"""End rows without the model, where an earlier run or a bisection knows how they end."""

from __future__ import annotations

from collections.abc import Sequence

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import ShardHints
from wordmask.tasks.output.reuse import Earlier, answers_of, rows_of
from wordmask.tasks.rows import Mask, Reject, Row, RowResult
from wordmask.tasks.storage import Store

KILLED = "every process that worked on this row alone died; the rows beside it did not harm it"


def apply_hints(
    rows: Sequence[Row], hints: ShardHints, output: Store
) -> tuple[list[Row], list[RowResult]]:
    """Split rows into those that are open and the results of those that hints settle.

    Rows that kill processes are rejected. Where rejects of some codes are tried again, all other
    rows of the shard stay what they are, but for those with the id of a row that is tried again:
    which of them is answered depends on it.
    """
    poisoned = [
        Reject(row=rows[position], code=RejectCode.WORKER_KILLED, detail=KILLED)
        for position in hints.poison_rows
    ]
    before = _kept_results(rows, hints, output)
    kept = [result for result in before if not _is_poison(result.row, hints)]
    open_ids = {row.row_id for row in _without(rows, [*poisoned, *kept])}
    settled = [*poisoned, *(result for result in kept if result.row.row_id not in open_ids)]
    return _without(rows, settled), settled


def reusable_answers(hints: ShardHints, output: Store) -> dict[str, Earlier]:
    """Return the answers of the parts that hints name, by `row_key`."""
    return {answer.row_key: answer for answer in answers_of(output, hints.reuse_from)}


def copied_mask(row: Row, answer: Earlier) -> Mask:
    """Return the answer of an earlier run as that of a row with the same image and query."""
    return Mask(
        row=row,
        image_id=answer.image_id,
        height=answer.height,
        width=answer.width,
        segmentation=answer.segmentation,
        copied=True,
        image_fingerprint=answer.image_fingerprint,
    )


def _kept_results(rows: Sequence[Row], hints: ShardHints, output: Store) -> list[RowResult]:
    """Return how rows of the shard ended before, without the rejects that are tried again."""
    if hints.earlier is None:
        return []
    masks_part, rejects_part = hints.earlier.parts
    masks = [copied_mask(rows[answer.row], answer) for answer in answers_of(output, [masks_part])]
    rejects = [
        Reject(
            row=rows[values["row"]],
            code=RejectCode(values["code"]),
            detail=values["detail"],
            image_fingerprint=values.get("image_fingerprint"),
        )
        for values in rows_of(output, rejects_part)
        if values["code"] not in hints.retry_codes
    ]
    return [*masks, *rejects]


def _without(rows: Sequence[Row], results: Sequence[RowResult]) -> list[Row]:
    """Return the rows that have no result."""
    positions = {result.row.position for result in results}
    return [row for row in rows if row.position not in positions]


def _is_poison(row: Row, hints: ShardHints) -> bool:
    return row.position in hints.poison_rows
