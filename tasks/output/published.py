"""A published run by its own record: which shards it has, how they ended, where their parts are.

What receipts say does not matter here: a late worker may have written one since.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from wordmask.schemas.manifests import IndexEntry
from wordmask.schemas.runs import Part, Receipt, RunSummary, ShardRecord
from wordmask.tasks.output.catalog import (
    latest_receipts,
    newest_run,
    newest_run_if_any,
    read_part_lists,
    read_receipts,
    run_path,
)
from wordmask.tasks.output.manifests import (
    entry_of,
    read_index,
    read_manifest,
    read_manifest_parts,
)
from wordmask.tasks.storage import Store

FILES_AT_ONCE = 16  # input files whose manifests are read at a time

T = TypeVar("T")
Parts = tuple[Part, Part]


class PublishedRun:
    """A published run. Its index is read when it is first needed, a manifest whenever it is.

    `head`: the run's counts and settings. `lost`: shards that the run has no record of any more.
    """

    lost: tuple[str, ...] = ()

    def __init__(self, output: Store, head: RunSummary) -> None:
        self.head = head
        self._output = output

    @cached_property
    def entries(self) -> Mapping[str, IndexEntry]:
        """The run's input files by name, in the order of the input."""
        return {entry.name: entry for entry in read_index(self._output, self.head.index)}

    def records_of(self, name: str) -> list[ShardRecord]:
        """Return the records of an input file's shards; none if the run did not have the file."""
        entry = self.entries.get(name)
        if entry is None:
            return []
        return read_manifest(self._output, entry.manifest)

    def records(self) -> Iterator[ShardRecord]:
        """Yield the records of all shards, in the order of the input. Few are in memory at once."""
        for records in _read_ahead(self.records_of, list(self.entries)):
            yield from records

    def parts(self) -> Iterator[Parts]:
        """Yield both parts of each shard, in the order of the input."""
        manifests = [entry.manifest for entry in self.entries.values()]
        for parts in _read_ahead(lambda path: read_manifest_parts(self._output, path), manifests):
            yield from parts

    def record_paths(self) -> Iterator[str]:
        """Yield the paths of the head, the index and the manifests."""
        yield run_path(self.head.run_id)
        yield self.head.index
        for entry in self.entries.values():
            yield entry.manifest


class ListedRun(PublishedRun):
    """A run as older versions published it: its head lists all parts, shards are in receipts."""

    def __init__(self, output: Store, head: RunSummary) -> None:
        super().__init__(output, head)
        self._lists = read_part_lists(output, head.run_id)

    @cached_property
    def entries(self) -> Mapping[str, IndexEntry]:
        return {name: entry_of(records) for name, records in self._records.items()}

    @cached_property
    def _records(self) -> Mapping[str, list[ShardRecord]]:
        """The records by input file, of the shards that have a receipt still."""
        fences = latest_receipts(self._output)
        ids = self._lists.shard_ids
        found = read_receipts(self._output, {id: fences[id] for id in ids if id in fences})
        receipts = {receipt.shard.shard_id: receipt for receipt in found}
        self.lost = tuple(shard_id for shard_id in ids if shard_id not in receipts)
        records = defaultdict(list)
        for shard_id, parts in zip(ids, self.parts(), strict=True):
            if shard_id in receipts:
                record = _record_of(self._output, receipts[shard_id], parts)
                records[record.shard.name].append(record)
        return records

    def records_of(self, name: str) -> list[ShardRecord]:
        return self._records.get(name, [])

    def parts(self) -> Iterator[Parts]:
        yield from zip(self._lists.masks_parts, self._lists.rejects_parts, strict=True)

    def record_paths(self) -> Iterator[str]:
        yield run_path(self.head.run_id)


def open_run(output: Store, head: RunSummary) -> PublishedRun:
    """Return a published run with its records."""
    if head.index:
        return PublishedRun(output, head)
    return ListedRun(output, head)


def open_newest_run(output: Store) -> PublishedRun:
    """Return the newest published run with its records.

    Raises:
        FileNotFoundError: nothing was published.
    """
    return open_run(output, newest_run(output))


def open_newest_run_if_any(output: Store) -> PublishedRun | None:
    """Return the newest published run with its records, or None if nothing was published."""
    head = newest_run_if_any(output)
    if head is None:
        return None
    return open_run(output, head)


def kept_paths(output: Store, heads: Iterable[RunSummary]) -> set[str]:
    """Return the paths of all that published runs consist of: heads, indexes, manifests, parts."""
    paths: set[str] = set()
    for head in heads:
        run = open_run(output, head)
        paths.update(run.record_paths())
        paths.update(part.path for parts in run.parts() for part in parts)
    return paths


def _record_of(output: Store, receipt: Receipt, parts: Parts) -> ShardRecord:
    """Return the record of a shard that a run listed with these parts.

    The receipt may be of another time than the run; then the parts themselves are counted.
    """
    masks, rejects = parts
    fields = {name: getattr(receipt, name) for name in ShardRecord.model_fields}
    if receipt.parts != parts:
        statuses = Counter(_column(output, masks, "status"))
        codes = Counter(_column(output, rejects, "code"))
        fields |= {
            "masks": masks.rows,
            "absent": statuses["absent"],
            "rejects": dict(sorted(codes.items())),
            "masks_part": masks,
            "rejects_part": rejects,
        }
    return ShardRecord.model_validate(fields)


def _column(output: Store, part: Part, name: str) -> list[str]:
    """Return a column of a part, or nothing if the part is gone."""
    try:
        with output.parquet(part.path) as parquet:
            values: list[str] = parquet.read(columns=[name]).column(0).to_pylist()
            return values
    except FileNotFoundError:
        return []


def _read_ahead(read: Callable[[str], Sequence[T]], names: Sequence[str]) -> Iterator[Sequence[T]]:
    """Yield what is read by each name, in order, and read a few at a time."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for start in range(0, len(names), FILES_AT_ONCE):
            yield from pool.map(read, names[start : start + FILES_AT_ONCE])
