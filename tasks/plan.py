"""Cut the input into shards from Parquet footers, and see which are done.

No row is read, with one exception: where there is a row_id column, that column alone is, to know which ids occur twice.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.queries import InputError, check_columns
from schemas.runs import Plan, RowRange, Shard
from schemas.settings import RunSettings
from tasks.read import values_of
from tasks.reuse import earlier_answers
from tasks.storage import Store, fingerprint, is_damaged_parquet
from tasks.summarize import new_run_id

FOOTERS_AT_ONCE = 16
OUR_PARTS = r"(masks|rejects)/part-[0-9a-f]{32}\.parquet"  # as tasks.write names them
PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class InputFile:
    """One Parquet file of the input and what its footer says. `name` is relative to the input."""

    uri: str
    name: str
    fingerprint: str
    size: int
    schema: pa.Schema
    row_groups: tuple[int, ...]  # rows of each

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


def make_plan(settings: RunSettings, model_revision: str) -> Plan:
    """Shards of the whole input in a fixed order.

    Raises:
        InputError: there is no Parquet file, one is unreadable, or a column is missing or of the wrong type.
    """
    files = input_files(settings)
    duplicates = duplicate_rows(files, settings)
    shards = tuple(shard for file in files for shard in _shards(file, settings, model_revision, duplicates.get(file.name, ())))
    receipts = Store.open(settings.output).names("receipts", ".json")
    done = frozenset(shard.shard_id for shard in shards) & receipts
    known = earlier_answers([shard for shard in shards if shard.shard_id not in done], shards, settings, receipts)
    size = sum(file.size for file in files)
    return Plan(run_id=new_run_id(), shards=shards, done=done, known=known, files=len(files), input_bytes=size)


def input_files(settings: RunSettings) -> list[InputFile]:
    """Every Parquet file of the input, sorted by name, with checked columns. What runs wrote to the output is not part of it."""
    store, output = Store.open(settings.input), Store.open(settings.output)
    base, found = _find(store)
    if output.fs == store.fs:
        ours = re.compile(re.escape(f"{output.root}/") + OUR_PARTS)
        found = [(path, info) for path, info in found if not ours.fullmatch(path)]
    if not found:
        raise InputError(f"input {settings.input}: no Parquet file there ({', '.join('*' + s for s in PARQUET_SUFFIXES)}). Check the path")
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        files = list(pool.map(lambda item: _read_footer(store, *item, base=base), found))
    for file in files:
        check_columns(file.schema, settings.segment, file.name)
    return files


def _find(store: Store) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The folder that names are relative to, and (path, info) of each file. A folder is searched recursively; below it,
    names that start with . or _ are not data. What exists under its very name is no pattern."""
    if store.fs.isfile(store.root):
        return store.root.rsplit("/", 1)[0], [(store.root, store.fs.info(store.root))]
    if glob.has_magic(store.root) and not store.fs.isdir(store.root):
        base = "/".join(takewhile(lambda part: not glob.has_magic(part), store.root.split("/")))
        entries = store.fs.glob(store.root, detail=True)
    else:
        base, entries = store.root, store.fs.find(store.root, detail=True)

    def is_data(path: str) -> bool:
        inside = path.removeprefix(base).split("/")
        return path.endswith(PARQUET_SUFFIXES) and not any(part.startswith((".", "_")) for part in inside)

    return base, sorted((path, info) for path, info in entries.items() if info["type"] == "file" and is_data(path))


def _read_footer(store: Store, path: str, info: dict[str, Any], *, base: str) -> InputFile:
    name = path.removeprefix(base).lstrip("/")
    try:
        with store.fs.open(path, "rb", cache_type="none") as handle:
            footer = pq.read_metadata(handle)
            groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
            schema = footer.schema.to_arrow_schema()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        raise InputError(f"input {name}: not a readable Parquet file ({error}). Export it again, or move it out of the input") from error
    return InputFile(
        uri=store.fs.unstrip_protocol(path),
        name=name,
        fingerprint=fingerprint(info),
        size=int(info["size"]),
        schema=schema,
        row_groups=groups,
    )


def duplicate_rows(files: list[InputFile], settings: RunSettings) -> dict[str, tuple[int, ...]]:
    """Per file, the rows whose row_id stood in an earlier row of the input. Null ids repeat nothing."""
    column = settings.segment.columns.row_id
    seen: set[bytes] = set()
    repeated: dict[str, tuple[int, ...]] = {}
    for file in files:
        if column not in file.schema.names:
            continue
        rows: list[int] = []
        for row, value in enumerate(_column(file, column)):
            if value is None:
                continue
            # A short hash rather than the id itself: ten million ids fit in memory.
            key = hashlib.blake2b(str(value).encode(), digest_size=12).digest()
            if key in seen:
                rows.append(row)
            seen.add(key)
        if rows:
            repeated[file.name] = tuple(rows)
    return repeated


def _column(file: InputFile, column: str) -> Iterator[Any]:
    with Store.open(file.uri).parquet("") as parquet:
        for batch in parquet.iter_batches(columns=[column]):
            yield from values_of(batch.column(0))


def _shards(file: InputFile, settings: RunSettings, model_revision: str, repeated: tuple[int, ...]) -> Iterator[Shard]:
    first = 0
    for ranges in cut(file.row_groups, settings.shard_rows):
        rows = sum(part.stop - part.start for part in ranges)
        duplicates = tuple(row - first for row in repeated if first <= row < first + rows)
        settings_hash = settings.segment.settings_hash
        identity = [file.name, file.fingerprint, first, ranges, duplicates, model_revision, settings_hash]
        shard_id = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        yield Shard(
            shard_id=shard_id, file=file.uri, name=file.name, fingerprint=file.fingerprint, ranges=ranges, first_row=first,
            duplicates=duplicates, model_revision=model_revision, settings_hash=settings_hash,
        )  # fmt: skip
        first += rows


def cut(row_groups: tuple[int, ...], most: int) -> Iterator[tuple[RowRange, ...]]:
    """Ranges of at most `most` rows in file order: small row groups are joined, large ones cut."""
    ranges: list[RowRange] = []
    room = most
    for index, rows in enumerate(row_groups):
        start = 0
        while start < rows:
            stop = min(rows, start + room)
            ranges.append(RowRange(index, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield tuple(ranges)
                ranges, room = [], most
    if ranges:
        yield tuple(ranges)
