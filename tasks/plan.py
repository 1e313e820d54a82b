"""Cut the input into shards from Parquet footers, and see which are done.

No row is read, with one exception: where there is a row_id column, that column alone is, to know
which ids occur twice.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan, RowRange, Shard, Unusable
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import new_run_id, newest_run_if_any
from wordmask.tasks.output.reuse import changed_shards, earlier_answers
from wordmask.tasks.storage import Store, is_damaged_parquet
from wordmask.tasks.table.footers import (
    FOOTERS_AT_ONCE,
    InputFile,
    RowGroup,
    distinct_images,
    input_files,
)
from wordmask.tasks.table.read import values_of


def make_plan(
    settings: RunSettings, model_revision: str, output: Store, *, refuse: bool = True
) -> Plan:
    """Shards of the whole input in a fixed order. Unless told to `refuse` them, files of no use to
    a run are left out and named.

    Raises:
        InputError: there is no Parquet file, or one is unreadable, or its row ids are, or a column
        is missing or of the wrong type.
    """
    source = Store.open(settings.input)
    found = input_files(source, output, settings.segment, refuse=refuse)
    files = [file for file in found if not file.problem]
    duplicates = duplicate_rows(files, settings)
    shards = tuple(
        shard
        for file in files
        for shard in _shards(file, settings, model_revision, duplicates.get(file.name, ()))
    )
    receipts = output.names("receipts", ".json")
    done = frozenset(shard.shard_id for shard in shards) & receipts
    pending = [shard for shard in shards if shard.shard_id not in done]
    newest = newest_run_if_any(output) if pending else None
    unusable = (
        Unusable(name=f.name, rows=f.rows if f.readable else None, why=f.problem)
        for f in found
        if f.problem
    )
    return Plan(
        run_id=new_run_id(),
        shards=shards,
        done=done,
        hints=earlier_answers(newest, pending, shards, settings, output, receipts)
        if newest
        else {},
        changed=changed_shards(newest, pending) if newest else frozenset(),
        files=len(found),
        input_bytes=sum(file.size for file in found),
        images=distinct_images(files),
        unusable=tuple(unusable),
    )


def duplicate_rows(files: Sequence[InputFile], settings: RunSettings) -> dict[str, tuple[int, ...]]:
    """Per file, the rows whose row_id stood in an earlier row of the input. Null ids repeat
    nothing.

    Ids are told apart by hashes of 8 bytes, so that those of ten million rows fit in memory; only
    where hashes meet are the ids themselves looked at.
    """
    column = settings.segment.columns.row_id
    files = [file for file in files if file.has_row_ids]
    ends = np.cumsum([file.rows for file in files], dtype=np.int64)

    def hashes(file: InputFile) -> NDArray[np.int64]:
        ids = enumerate(_column(file, column))
        return np.fromiter(
            (hash((file.name, row) if value is None else str(value)) for row, value in ids),
            np.int64,
            file.rows,
        )

    every = np.empty(sum(file.rows for file in files), np.int64)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        for file, end, own in zip(files, ends, pool.map(hashes, files), strict=True):
            every[end - file.rows : end] = own
    ordered = np.sort(every)
    met = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    seen: set[str] = set()
    repeated: dict[str, tuple[int, ...]] = {}
    for file, end in zip(files, ends, strict=True) if met.size else ():
        own = every[end - file.rows : end]
        suspects = {
            *np.flatnonzero(met[np.searchsorted(met, own).clip(max=met.size - 1)] == own).tolist()
        }
        rows: list[int] = []
        for row, value in enumerate(_column(file, column)) if suspects else ():
            if row in suspects and value is not None:
                if str(value) in seen:
                    rows.append(row)
                seen.add(str(value))
        if rows:
            repeated[file.name] = tuple(rows)
    return repeated


def _column(file: InputFile, column: str) -> Iterator[Any]:
    try:
        with Store.open(file.uri).parquet("") as parquet:
            for batch in parquet.iter_batches(columns=[column], use_threads=False):
                yield from values_of(batch.column(0))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        problem = (
            f"input {file.name}: column {column!r} cannot be read ({error}). Export it again, or"
            " move it out of the input"
        )
        raise InputError(problem) from error


def _shards(
    file: InputFile, settings: RunSettings, model_revision: str, repeated: tuple[int, ...]
) -> Iterator[Shard]:
    first, settings_hash = 0, settings.segment.settings_hash
    for ranges in cut(file.row_groups, settings.shard_rows, settings.shard_bytes):
        rows = sum(part.stop - part.start for part in ranges)
        duplicates = tuple(
            row - first
            for row in repeated[bisect_left(repeated, first) : bisect_left(repeated, first + rows)]
        )
        identity = [
            file.name,
            file.fingerprint,
            first,
            ranges,
            duplicates,
            model_revision,
            settings_hash,
        ]
        shard_id = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        yield Shard(
            shard_id=shard_id,
            file=file.uri,
            name=file.name,
            fingerprint=file.fingerprint,
            ranges=ranges,
            first_row=first,
            duplicates=duplicates,
            model_revision=model_revision,
            settings_hash=settings_hash,
        )
        first += rows


def cut(
    row_groups: Sequence[RowGroup], most: int, most_bytes: int
) -> Iterator[tuple[RowRange, ...]]:
    """Ranges of at most `most` rows and, unless it is one row, `most_bytes` in file order: small
    row groups are joined, large ones cut.

    A footer knows the bytes of a row group, not of a row: each is taken for an equal share.
    """
    ranges: list[RowRange] = []
    room, room_bytes = most, most_bytes
    for index, group in enumerate(row_groups):
        start = 0
        while start < group.rows:
            fit = min(room, room_bytes * group.rows // group.bytes) if group.bytes else room
            taken = min(group.rows - start, max(fit, 0 if ranges else 1))
            if taken:
                ranges.append(RowRange(index, start, start + taken))
                start += taken
                room -= taken
                room_bytes -= taken * group.bytes // group.rows
            if start < group.rows or room == 0:
                yield tuple(ranges)
                ranges, room, room_bytes = [], most, most_bytes
    if ranges:
        yield tuple(ranges)
