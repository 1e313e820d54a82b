"""Write and read what a published run consists of: manifests, and an index of them.

Both are Parquet files that are named by their content, so that none of them ever changes.
`schemas/manifests.py` has their columns.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from wordmask.schemas.manifests import INDEX, MANIFEST, IndexEntry
from wordmask.schemas.runs import Part, ShardRecord
from wordmask.schemas.settings import Frozen
from wordmask.tasks.output.catalog import index_path, is_named_by_content, manifest_path
from wordmask.tasks.storage import Store, sha256

WRITES_AT_ONCE = 16


class FileRecords(Frozen):
    """An input file in a run that is to be published."""

    entry: IndexEntry = Field(description="without a manifest where one has to be written")
    records: tuple[ShardRecord, ...] = Field((), description="of its shards, for that manifest")


class DamagedRecordError(RuntimeError):
    """A published run's own record is gone or was changed. The message names the file."""


def entry_of(records: Sequence[ShardRecord]) -> IndexEntry:
    """Return the index's row of an input file whose manifest is not written yet."""
    shard = records[0].shard
    parts = [part for record in records for part in record.parts]
    return IndexEntry(
        name=shard.name,
        fingerprint=shard.fingerprint,
        shards=len(records),
        rows=sum(record.rows for record in records),
        masks=sum(record.masks for record in records),
        absent=sum(record.absent for record in records),
        rejects=add_counts(record.rejects for record in records),
        bytes=sum(part.bytes for part in parts),
        parts_digest=digest_of((part.path, part.bytes) for part in parts),
    )


def add_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sums of counts by name, sorted by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def digest_of(parts: Iterable[tuple[str, int]]) -> str:
    """Return 32 hex digits of the paths and sizes of parts, in whatever order."""
    return sha256(json.dumps(sorted(parts)).encode())[:32]


def write_manifests(output: Store, files: Sequence[FileRecords], fence: int = 0) -> str:
    """Write the manifests of a run that there are not yet, then its index; return its path.

    No reader looks at them until the run's head names the index.
    """
    with ThreadPoolExecutor(WRITES_AT_ONCE) as pool:
        entries = list(pool.map(lambda file: _with_manifest(output, file, fence), files))
    data = _table_bytes([entry.model_dump() for entry in entries], INDEX)
    path = index_path(sha256(data), fence)
    output.write_bytes(path, data)
    return path


def _with_manifest(output: Store, file: FileRecords, fence: int) -> IndexEntry:
    """Return the index's row of a file, and write the file's manifest if there is none yet."""
    if file.entry.manifest:
        return file.entry
    columns = set(MANIFEST.names)
    data = _table_bytes([record.model_dump(include=columns) for record in file.records], MANIFEST)
    path = manifest_path(sha256(data), fence)
    output.write_bytes(path, data)
    return file.entry.model_copy(update={"manifest": path, "manifest_bytes": len(data)})


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a Parquet file with one row group. The same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        version="2.6",
        data_page_version="1.0",
        row_group_size=max(table.num_rows, 1),
    )
    return buffer.getvalue()


def read_index(output: Store, path: str) -> list[IndexEntry]:
    """Return the rows of a run's index, in the order of the input.

    Raises:
        DamagedRecordError: it is gone, or was changed.
    """
    rows = _read_table(output, path, None).to_pylist(maps_as_pydicts="strict")
    return [IndexEntry.model_validate(row) for row in rows]


def read_manifest(output: Store, path: str) -> list[ShardRecord]:
    """Return the records of an input file's shards, in the order of the file.

    Raises:
        DamagedRecordError: it is gone, or was changed.
    """
    rows = _read_table(output, path, None).to_pylist(maps_as_pydicts="strict")
    return [ShardRecord.model_validate(row) for row in rows]


def read_manifest_parts(output: Store, path: str) -> list[tuple[Part, Part]]:
    """Return the parts of an input file's shards. Raises as `read_manifest` does."""
    rows = _read_table(output, path, ["masks_part", "rejects_part"]).to_pylist()
    return [(Part(**row["masks_part"]), Part(**row["rejects_part"])) for row in rows]


def _table_bytes(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    return parquet_bytes(pa.Table.from_pylist(rows, schema=schema))


def _read_table(output: Store, path: str, columns: list[str] | None) -> pa.Table:
    remedy = (
        "Remove the file of the run that names it from runs/, and the run before it counts again;"
        " the next run computes what is missing"
    )
    try:
        data = output.read_bytes(path)
    except FileNotFoundError:
        raise DamagedRecordError(f"output {output.root}: {path} is missing. {remedy}") from None
    if not is_named_by_content(path, sha256(data)):
        raise DamagedRecordError(f"output {output.root}: {path} is not what was written. {remedy}")
    return pq.read_table(pa.BufferReader(data), columns=columns)
