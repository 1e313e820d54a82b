"""Read row groups of Parquet files from their beginning on, and keep readers for later shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import NamedTuple

import pyarrow as pa

from wordmask.schemas.queries import columns_read
from wordmask.schemas.runs import RowRange, Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.storage import Store

BATCH_ROWS = 64  # rows read at once: their images are in memory together
MAX_IDLE_READERS = 4  # a worker reads for two shards at a time


class RowGroupReader:
    """Reads the rows of one row group in order: Parquet has no way to its middle."""

    def __init__(self, table: Store, settings: SegmentSettings, row_group: int) -> None:
        self._open = ExitStack()
        file = self._open.enter_context(table.parquet(""))
        self.schema: pa.Schema = file.schema_arrow
        self._rows: int = file.metadata.row_group(row_group).num_rows
        self._batches = file.iter_batches(
            batch_size=BATCH_ROWS,
            row_groups=[row_group],
            columns=columns_read(self.schema, settings),
        )
        self._rest: pa.RecordBatch | None = None  # of the batch in which the last range ended
        self.position = 0  # the row that comes next

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows start..stop in batches. `start` is at `position` or after it."""
        while self.position < stop:
            batch = self._rest
            if batch is None:
                batch = next(self._batches)
            first = max(start - self.position, 0)
            end = min(stop - self.position, len(batch))
            self._rest = None
            if end < len(batch):
                self._rest = batch.slice(end)
            self.position += end
            if first < end:
                yield batch.slice(first, end - first)

    @property
    def exhausted(self) -> bool:
        return self.position >= self._rows

    def close(self) -> None:
        """Close the file."""
        self._open.close()


class _Key(NamedTuple):
    """What two shards must share to share a reader."""

    file: str
    fingerprint: str
    settings_hash: str
    row_group: int


class ReaderCache:
    """Readers that shards left in the middle of a row group, for the shards that follow.

    A row group of many shards would otherwise be read anew up to the beginning of each of them.
    """

    def __init__(self) -> None:
        self._idle: deque[tuple[_Key, RowGroupReader]] = deque()
        self._lock = Lock()

    @contextmanager
    def reader(
        self, table: Store, shard: Shard, settings: SegmentSettings, part: RowRange
    ) -> Generator[RowGroupReader]:
        """Lend a reader that has not passed the start of a part. It is nobody else's meanwhile."""
        key = _Key(shard.file, shard.fingerprint, shard.settings_hash, part.row_group)
        reader = self._take(key, part.start) or RowGroupReader(table, settings, part.row_group)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        if reader.exhausted:
            reader.close()
        else:
            self._put(key, reader)

    def close(self) -> None:
        """Close the readers that no shard uses."""
        with self._lock:
            idle = [*self._idle]
            self._idle.clear()
        for _, reader in idle:
            reader.close()

    def _take(self, key: _Key, start: int) -> RowGroupReader | None:
        """Take the reader that is nearest before a row out of the cache."""
        with self._lock:
            usable = [entry for entry in self._idle if entry[0] == key]
            usable = [entry for entry in usable if entry[1].position <= start]
            if not usable:
                return None
            nearest = max(usable, key=lambda entry: entry[1].position)
            self._idle.remove(nearest)
            return nearest[1]

    def _put(self, key: _Key, reader: RowGroupReader) -> None:
        """Keep a reader, and close the oldest one if there are too many."""
        with self._lock:
            self._idle.append((key, reader))
            if len(self._idle) <= MAX_IDLE_READERS:
                return
            _, oldest = self._idle.popleft()
        oldest.close()
