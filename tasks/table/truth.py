"""Write input tables: images embedded, a query each, ground truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.schemas.masks import RLE
from wordmask.schemas.queries import InputError
from wordmask.tasks.storage import Store

IMAGE = pa.struct(
    [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
)  # the Hugging Face Image layout
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


def write_table(
    dest: str, rows: Iterable[dict[str, Any]], tell: Callable[[int], object] | None = None
) -> int:
    """Write rows of `TRUTH_TABLE` to one Parquet file with bounded row groups; how many there were.
    `tell` hears how many are written so far, now and then.

    The file appears when it is whole: an error among the rows leaves none, and an older one of that
    name as it was.
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
            if tell is not None:
                tell(count)
    return count


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"] or b"")
        if size >= ROW_GROUP_BYTES or len(group) == ROW_GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group
