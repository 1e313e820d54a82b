"""Read the rows of a shard in bounded memory, also those whose text is not UTF-8."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.inputs.partitions import with_partition
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store, fingerprint, is_damaged_parquet
from wordmask.tasks.table.row_groups import ReaderCache

# What a file with fewer row groups or rows than planned leads to.
SHRUNK = (IndexError, RuntimeError)
INVALID_UTF8 = "\0invalid_utf8"  # no column has such a name


class DamagedInputError(RuntimeError):
    """Rows of an input file cannot be read, however often it is tried."""


class InputChangedError(RuntimeError):
    """The input file is not the one that was planned."""


def read_rows(
    table: Store, shard: Shard, settings: SegmentSettings, readers: ReaderCache
) -> tuple[list[Row], pa.Schema]:
    """Read the rows of a shard, in order, and the schema of their file with its partition.

    Args:
        table: the store of the shard's file.
        shard: the rows to read.
        settings: the columns to read.
        readers: readers that earlier shards of the file left open.

    Raises:
        InputChangedError: the file was replaced since the plan was made.
        DamagedInputError: the footer is intact, but the rows are not.
    """
    _require_unchanged(table, shard)
    rows: list[Row] = []
    try:
        for part in shard.ranges:
            with readers.reader(table, shard, settings, part) as reader:
                schema = reader.schema
                for batch in reader.read(part.start, part.stop):
                    for values in rows_of(batch):
                        rows.append(_row(len(rows), values, shard, settings))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, *SHRUNK) as error:
        # Whatever is wrong, a file that was replaced meanwhile explains it.
        _require_unchanged(table, shard)
        if not is_damaged_parquet(error):
            raise
        raise DamagedInputError(
            f"input {shard.label}: the file is damaged ({error}). Export it again, and run again"
        ) from error
    return rows, with_partition(schema, shard.partition)


def _require_unchanged(table: Store, shard: Shard) -> None:
    try:
        found = fingerprint(table.info())
    except FileNotFoundError:
        raise InputChangedError(
            f"{shard.name}: was there when planned, and is gone now. Run again to plan anew"
        ) from None
    if found != shard.fingerprint:
        raise InputChangedError(
            f"{shard.name}: was {shard.fingerprint} when planned, is {found} now. Run again to plan"
            " it anew"
        )


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield rows as dicts.

    Bytes that are not UTF-8 are replaced; `INVALID_UTF8` names the columns that hold them.
    """
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(len(batch)):
            yield _mended(batch.slice(index, 1))


def values_of(column: pa.Array) -> list[Any]:
    """Return the values of a column of text or numbers. Bytes that are not UTF-8 are replaced."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_replaced(column.slice(index, 1)) for index in range(len(column))]
    return values


def _mended(row: pa.RecordBatch) -> dict[str, Any]:
    values: dict[str, Any] = {}
    invalid: list[str] = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except UnicodeDecodeError:
            invalid.append(name)
            values[name] = _replaced(column)
    return values | {INVALID_UTF8: tuple(invalid)}


def _replaced(column: pa.Array) -> Any:
    """Return the one value of a column, with `\\ufffd` for bytes that are not UTF-8.

    A value of a type that holds text deeper inside is None.
    """
    kind = column.type
    if pa.types.is_struct(kind):
        return {field.name: _replaced_field(column.field(field.name)) for field in kind}
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    data: bytes | None = column.cast(pa.large_binary())[0].as_py()
    if data is None:
        return None
    return data.decode(errors="replace")


def _replaced_field(field: pa.Array) -> Any:
    if pa.types.is_binary(field.type):
        return field[0].as_py()
    return _replaced(field)


def _row(position: int, values: dict[str, Any], shard: Shard, settings: SegmentSettings) -> Row:
    columns = settings.columns
    image_bytes, image_uri = _image(values.get(columns.image))
    query = values.get(columns.query)
    spatial_refs = tuple(map(_spatial_ref, values.get(columns.spatial_refs) or ()))
    row_id = values.get(columns.row_id)
    if row_id is None:
        index = shard.first_row + position
        row_id = derived_row_id(shard.name, index, image_bytes, image_uri, query, spatial_refs)
    return Row(
        position=position,
        row_id=str(row_id),
        image_bytes=image_bytes,
        image_uri=image_uri,
        query=query,
        spatial_refs=spatial_refs,
        mode=values.get(columns.mode),
        carried={name: values.get(name) for name in settings.carry} | shard.partition,
        invalid_utf8=values.get(INVALID_UTF8, ()),
    )


def _image(value: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes and the URI of an image column's value."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value, None
    return None, value


def _spatial_ref(value: list[float | None] | None) -> tuple[float | None, ...] | None:
    if value is None:
        return None
    return tuple(value)


def derived_row_id(
    name: str,
    index: int,
    image_bytes: bytes | None,
    image_uri: str | None,
    query: str | None,
    spatial_refs: tuple[Any, ...],
) -> str:
    """Return 32 hex digits that no two rows of an input share.

    They are a hash of the file's name, the row's index in it and the row's content.
    """
    image = None
    if image_bytes is not None:
        image = hashlib.sha256(image_bytes).hexdigest()
    content = repr((name, index, image, image_uri, query, spatial_refs))
    return hashlib.sha256(content.encode()).hexdigest()[:32]
