"""Read the rows of a shard in bounded memory, and see what can be seen of them without the image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.queries import columns_read
from schemas.runs import Shard
from schemas.settings import SegmentSettings
from tasks.storage import Store, fingerprint, is_damaged_parquet

BATCH_ROWS = 64  # rows read at once: their images are in memory together
GARBLED = "\0garbled"  # no column has such a name


class DamagedInputError(RuntimeError):
    """Rows of an input file cannot be read, however often it is tried."""


class InputChangedError(RuntimeError):
    """The input file is not the one that was planned."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One input row. `row` is its position in the shard. `image_bytes` or `image_uri` or neither is there.
    `carried` holds the values of the columns that are copied through. `garbled` names the columns whose text is no UTF-8."""

    row: int
    row_id: str
    image_bytes: bytes | None
    image_uri: str | None
    query: str | None
    spatial_refs: tuple[tuple[float | None, ...] | None, ...]
    mode: str | None
    carried: dict[str, Any]
    garbled: tuple[str, ...] = ()


def read_rows(shard: Shard, settings: SegmentSettings) -> tuple[list[Row], pa.Schema]:
    """The rows of a shard in order, and the file's schema.

    Raises:
        InputChangedError: the file was replaced since the plan was made.
        DamagedInputError: its footer is intact, but not what lies there.
    """
    store = Store.open(shard.file)
    found = fingerprint(store.fs.info(store.root))
    if found != shard.fingerprint:
        raise InputChangedError(f"{shard.name}: was {shard.fingerprint} when planned, is {found} now. Run again to plan it anew")
    try:
        with store.parquet("") as file:
            schema = file.schema_arrow
            values = enumerate(_values(file, shard, columns_read(schema, settings)))
            return [_row(position, row, shard, settings) for position, row in values], schema
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        raise DamagedInputError(f"input {shard.place}: the file is damaged ({error}). Export it again, and run again") from error


def _values(file: pq.ParquetFile, shard: Shard, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in shard.ranges:
        at = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[part.row_group], columns=columns):
            start, stop = max(part.start - at, 0), min(part.stop - at, len(batch))
            if start < stop:
                yield from rows_of(batch.slice(start, stop - start))
            at += len(batch)
            if at >= part.stop:
                break


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts. Where a text is no UTF-8, the bad bytes are replaced and `GARBLED` names the column."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(len(batch)):
            yield _mended(batch.slice(index, 1))


def values_of(column: pa.Array) -> list[Any]:
    """Values of a column of text or numbers; where a text is no UTF-8, its bad bytes are replaced."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_replaced(column.slice(index, 1)) for index in range(len(column))]
    return values


def _mended(row: pa.RecordBatch) -> dict[str, Any]:
    values: dict[str, Any] = {}
    garbled: list[str] = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except UnicodeDecodeError:
            garbled.append(name)
            values[name] = _replaced(column)
    return values | {GARBLED: tuple(garbled)}


def _replaced(column: pa.Array) -> Any:
    """The one value of a column whose text is no UTF-8, as far as it can be told."""
    if pa.types.is_struct(column.type):
        fields = {field.name: column.field(field.name) for field in column.type}
        return {name: part[0].as_py() if pa.types.is_binary(part.type) else _replaced(part) for name, part in fields.items()}
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        data = column.cast(pa.large_binary())[0].as_py()
        return None if data is None else data.decode(errors="replace")
    return None


def _row(position: int, values: dict[str, Any], shard: Shard, settings: SegmentSettings) -> Row:
    columns = settings.columns
    data, uri = _image(values.get(columns.image))
    refs = tuple(None if ref is None else tuple(ref) for ref in values.get(columns.spatial_refs) or ())
    query, mode = values.get(columns.query), values.get(columns.mode)
    row_id = values.get(columns.row_id)
    if row_id is None:
        row_id = derived_row_id(shard.name, shard.first_row + position, data, uri, query, refs)
    return Row(
        row=position, row_id=str(row_id), image_bytes=data, image_uri=uri, query=query, spatial_refs=refs, mode=mode,
        carried={name: values.get(name) for name in settings.carry}, garbled=values.get(GARBLED, ()),
    )  # fmt: skip


def _image(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value, None
    return None, value


def derived_row_id(name: str, index: int, data: bytes | None, uri: str | None, query: str | None, refs: tuple[Any, ...]) -> str:
    """32 hex digits from where the row stands and what it says, so that no two rows of an input share one."""
    image = hashlib.sha256(data).hexdigest() if data is not None else None
    return hashlib.sha256(repr((name, index, image, uri, query, refs)).encode()).hexdigest()[:32]
