"""Input tables with ground truth: images embedded, a query each, and its mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.schemas.masks import RLE
from wordmask.schemas.queries import IMAGE, InputError
from wordmask.tasks.storage import Store

TRUTH_TABLE = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("image", IMAGE),
        pa.field("query", pa.string()),
        pa.field("mask", RLE),
    ]
)
ROW_GROUP_BYTES = 16_000_000
ROW_GROUP_ROWS = 256

OnRows = Callable[[int], object]  # is called with how many rows are written so far


def ignore_rows(_: int) -> None:
    """Report nothing."""


def write_table(dest: str, rows: Iterable[dict[str, Any]], on_rows: OnRows = ignore_rows) -> int:
    """Write rows of `TRUTH_TABLE` to one Parquet file, in bounded row groups.

    The file appears when it is whole: an error among the rows leaves no file, or an older one of
    that name as it was.

    Args:
        dest: path or URI of the file.
        rows: the rows.
        on_rows: called after each row group.

    Returns:
        How many rows were written.

    Raises:
        InputError: `dest` is a folder.
    """
    store = Store.open(dest)
    if store.fs.isdir(store.root):
        raise InputError(f"{dest}: is a folder; name the Parquet file to write in it")
    if store.is_local:
        store.fs.makedirs(store.root.rsplit("/", 1)[0], exist_ok=True)
    count = 0
    # Closing a ParquetWriter writes a footer even after an error, so without the transaction half a
    # table would look whole.
    with (
        store.fs.transaction,
        store.fs.open(store.root, "wb") as handle,
        pq.ParquetWriter(handle, TRUTH_TABLE, compression="zstd") as out,
    ):
        for group in _groups(rows):
            out.write_table(pa.Table.from_pylist(group, schema=TRUTH_TABLE))
            count += len(group)
            on_rows(count)
    return count


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"] or b"")
        if size >= ROW_GROUP_BYTES or len(group) == ROW_GROUP_ROWS:
            yield group
            group = []
            size = 0
    if group:
        yield group
