"""Find what is wrong with a row before its image is touched."""

from __future__ import annotations

from collections.abc import Sequence

from wordmask.model.types import QueryError
from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.context import SegmenterLike
from wordmask.tasks.rows import Reject, Row


def check_rows(rows: Sequence[Row], segmenter: SegmenterLike) -> tuple[list[Row], list[Reject]]:
    """Split rows into those that can go to the model and the rejects of the others.

    The first fault that is found gives a reject its code.
    """
    sound: list[Row] = []
    rejects: list[Reject] = []
    for row in rows:
        reject = _reject_text(row) or _reject_request(row) or _reject_query(row, segmenter)
        if reject is None:
            sound.append(row)
        else:
            rejects.append(reject)
    return sound, rejects


def references(row: Row) -> tuple[tuple[float, ...], ...]:
    """Return the spatial references of a row that holds no nulls, in unit of image."""
    return tuple(
        tuple(float(value) for value in ref if value is not None)
        for ref in row.spatial_refs
        if ref is not None
    )


def _reject_text(row: Row) -> Reject | None:
    if row.invalid_utf8:
        detail = f"{', '.join(row.invalid_utf8)}: holds bytes that are no UTF-8"
        return Reject(row=row, code=RejectCode.INVALID_TEXT, detail=detail)
    return None


def _reject_request(row: Row) -> Reject | None:
    if row.mode not in (None, "", "one"):
        detail = f'mode = {row.mode!r}: only "one" is supported'
        return Reject(row=row, code=RejectCode.UNSUPPORTED_MODE, detail=detail)
    if row.query is None or not row.query.strip():
        return Reject(row=row, code=RejectCode.EMPTY_QUERY, detail=f"query = {row.query!r}")
    if any(ref is None or None in ref for ref in row.spatial_refs):
        detail = f"spatial_refs = {row.spatial_refs!r}: holds a null"
        return Reject(row=row, code=RejectCode.BAD_SPATIAL_REF, detail=detail)
    if row.image_bytes is None and not row.image_uri:
        return Reject(row=row, code=RejectCode.MISSING_IMAGE, detail="the image is null")
    return None


def _reject_query(row: Row, segmenter: SegmenterLike) -> Reject | None:
    try:
        segmenter.check_query(str(row.query), references(row))
    except QueryError as error:
        return Reject(row=row, code=error.code, detail=error.detail)
    return None
