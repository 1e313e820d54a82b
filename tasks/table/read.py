"""Read the rows of a shard in bounded memory, and see what can be seen of them without the
image.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any

import pyarrow as pa

from wordmask.schemas.queries import columns_read
from wordmask.schemas.runs import RowRange, Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.storage import Store, fingerprint, is_damaged_parquet

BATCH_ROWS = 64  # rows read at once: their images are in memory together
REELS = 4  # kept open: a worker reads for two shards at a time
INVALID_UTF8 = "\0garbled"  # no column has such a name


class DamagedInputError(RuntimeError):
    """Rows of an input file cannot be read, however often it is tried."""


class InputChangedError(RuntimeError):
    """The input file is not the one that was planned."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One input row. `row` is its position in the shard. `image_bytes` or `image_uri` or neither is
    there. `carried` holds the values of the columns that are copied through. `invalid_utf8` names
    the columns whose text is no UTF-8."""

    row: int
    row_id: str
    image_bytes: bytes | None
    image_uri: str | None
    query: str | None
    spatial_refs: tuple[tuple[float | None, ...] | None, ...]
    mode: str | None
    carried: dict[str, Any]
    invalid_utf8: tuple[str, ...] = ()


def read_rows(shard: Shard, settings: SegmentSettings) -> tuple[list[Row], pa.Schema]:
    """The rows of a shard in order, and the file's schema.

    Raises:
        InputChangedError: the file was replaced since the plan was made.
        DamagedInputError: its footer is intact, but not what lies there.
    """
    store = Store.open(shard.file)
    found = fingerprint(store.fs.info(store.root))
    if found != shard.fingerprint:
        raise InputChangedError(
            f"{shard.name}: was {shard.fingerprint} when planned, is {found} now. Run again to plan"
            " it anew"
        )
    rows: list[Row] = []
    try:
        for part in shard.ranges:
            with _reel(store, shard, settings, part) as reel:
                schema = reel.schema
                values = chain.from_iterable(map(rows_of, reel.wind(part.start, part.stop)))
                rows += [
                    _row(position, each, shard, settings)
                    for position, each in enumerate(values, start=len(rows))
                ]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        raise DamagedInputError(
            f"input {shard.label}: the file is damaged ({error}). Export it again, and run again"
        ) from error
    return rows, schema


class _Reel:
    """The rows of a row group, read from its beginning on: Parquet has no way to its middle."""

    def __init__(self, store: Store, settings: SegmentSettings, row_group: int) -> None:
        self._open = ExitStack()
        file = self._open.enter_context(store.parquet(""))
        self.schema: pa.Schema = file.schema_arrow
        self._rows: int = file.metadata.row_group(row_group).num_rows
        columns = columns_read(self.schema, settings)
        self._batches = file.iter_batches(
            batch_size=BATCH_ROWS, row_groups=[row_group], columns=columns
        )
        self._left: pa.RecordBatch | None = None  # of a batch that was wound into
        self.at = 0  # row that comes next

    def wind(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows start..stop, of which the first was not passed yet."""
        while self.at < stop:
            batch = next(self._batches) if self._left is None else self._left
            first, end = max(start - self.at, 0), min(stop - self.at, len(batch))
            self._left = batch.slice(end) if end < len(batch) else None
            self.at += end
            if first < end:
                yield batch.slice(first, end - first)

    @property
    def ended(self) -> bool:
        return self.at >= self._rows

    def close(self) -> None:
        self._open.close()


_reels: deque[tuple[tuple[str | int, ...], _Reel]] = (
    deque()
)  # of this process, left where shards ended
_reels_lock = Lock()


@contextmanager
def _reel(store: Store, shard: Shard, settings: SegmentSettings, part: RowRange) -> Iterator[_Reel]:
    """A reel that has not passed the start of a part: the one that an earlier shard left nearest
    before it, else a new one. A row group of many shards would otherwise be read anew up to each of
    them."""
    key = (shard.file, shard.fingerprint, shard.settings_hash, part.row_group)
    with _reels_lock:
        before = [entry for entry in _reels if entry[0] == key and entry[1].at <= part.start]
        found = max(before, key=lambda entry: entry[1].at, default=None)
        if found is not None:
            _reels.remove(found)
    reel = _Reel(store, settings, part.row_group) if found is None else found[1]
    try:
        yield reel
    except BaseException:
        reel.close()
        raise
    if reel.ended:
        reel.close()
        return
    with _reels_lock:
        _reels.append((key, reel))
        over = _reels.popleft()[1] if len(_reels) > REELS else None
    if over is not None:
        over.close()


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts. Where a text is no UTF-8, the bad bytes are replaced and `INVALID_UTF8` names
    the column.
    """
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(len(batch)):
            yield _mended(batch.slice(index, 1))


def values_of(column: pa.Array) -> list[Any]:
    """Values of a column of text or numbers; where a text is no UTF-8, its bad bytes are
    replaced.
    """
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_replaced(column.slice(index, 1)) for index in range(len(column))]
    return values


def _mended(row: pa.RecordBatch) -> dict[str, Any]:
    values: dict[str, Any] = {}
    invalid_utf8: list[str] = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except UnicodeDecodeError:
            invalid_utf8.append(name)
            values[name] = _replaced(column)
    return values | {INVALID_UTF8: tuple(invalid_utf8)}


def _replaced(column: pa.Array) -> Any:
    """The one value of a column whose text is no UTF-8, as far as it can be told."""
    if pa.types.is_struct(column.type):
        fields = {field.name: column.field(field.name) for field in column.type}
        return {
            name: part[0].as_py() if pa.types.is_binary(part.type) else _replaced(part)
            for name, part in fields.items()
        }
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        data = column.cast(pa.large_binary())[0].as_py()
        return None if data is None else data.decode(errors="replace")
    return None


def _row(position: int, values: dict[str, Any], shard: Shard, settings: SegmentSettings) -> Row:
    columns = settings.columns
    data, uri = _image(values.get(columns.image))
    refs = tuple(
        None if ref is None else tuple(ref) for ref in values.get(columns.spatial_refs) or ()
    )
    query, mode = values.get(columns.query), values.get(columns.mode)
    row_id = values.get(columns.row_id)
    if row_id is None:
        row_id = derived_row_id(shard.name, shard.first_row + position, data, uri, query, refs)
    return Row(
        row=position,
        row_id=str(row_id),
        image_bytes=data,
        image_uri=uri,
        query=query,
        spatial_refs=refs,
        mode=mode,
        carried={name: values.get(name) for name in settings.carry},
        invalid_utf8=values.get(INVALID_UTF8, ()),
    )


def _image(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value, None
    return None, value


def derived_row_id(
    name: str,
    index: int,
    data: bytes | None,
    uri: str | None,
    query: str | None,
    refs: tuple[Any, ...],
) -> str:
    """32 hex digits from where the row stands and what it says, so that no two rows of an input
    share one.
    """
    image = hashlib.sha256(data).hexdigest() if data is not None else None
    return hashlib.sha256(repr((name, index, image, uri, query, refs)).encode()).hexdigest()[:32]
