"""What need not be computed: shards of a published run, and those that have receipts.

A shard of the published run is taken from that run's own record, whatever its receipts say. Both
count only if their parts are there, by the output's listing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from wordmask.schemas.manifests import IndexEntry
from wordmask.schemas.runs import Part, Receipt, RunSummary, Shard, ShardRecord
from wordmask.tasks.output.catalog import (
    is_named_by_content,
    latest_receipts,
    part_files,
    published_runs,
    read_receipts,
    record_files,
    run_path,
)
from wordmask.tasks.output.garbage import named_garbage
from wordmask.tasks.output.manifests import digest_of
from wordmask.tasks.output.published import PublishedRun, open_run
from wordmask.tasks.storage import Store

FILES_AT_ONCE = 8


class DoneShards(NamedTuple):
    """Ids of shards that need not be computed, by where their records are."""

    published: frozenset[str] = frozenset()
    with_receipts: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.published | self.with_receipts


class Listing:
    """The parts and manifests of an output with their sizes, as they were listed."""

    def __init__(self, output: Store) -> None:
        self._parts: dict[str, dict[str, int]] = defaultdict(dict)  # by shard, then by path
        for file in part_files(output):
            self._parts[file.shard_id][file.path] = file.bytes
        self._records = {file.path: file.bytes for file in record_files(output)}

    def problem_of(self, record: ShardRecord) -> str:
        """Return what is wrong with the parts of a shard, or "" if they are as recorded."""
        listed = self._parts.get(record.shard.shard_id, {})
        problems = (_problem_of_part(part, listed) for part in record.parts)
        return next(filter(None, problems), "")

    def has_file(self, entry: IndexEntry, shard_ids: Sequence[str]) -> bool:
        """Return whether an input file has just these shards, and their parts are all there.

        It may say no, wrongly, where parts of another time lie beside them.
        """
        if len(shard_ids) != entry.shards or not self.has_manifest(entry):
            return False
        listed = (item for shard_id in shard_ids for item in self._parts.get(shard_id, {}).items())
        return digest_of(listed) == entry.parts_digest

    def has_manifest(self, entry: IndexEntry) -> bool:
        """Return whether the manifest is there; it is not where a run never had one."""
        return self._records.get(entry.manifest) == entry.manifest_bytes


def _problem_of_part(part: Part, listed: Mapping[str, int]) -> str:
    found = listed.get(part.path)
    if found is None:
        return f"{part.path} is missing"
    if found != part.bytes:
        return f"{part.path} has {found} bytes instead of {part.bytes}"
    if not is_named_by_content(part.path, part.sha256):
        return f"{part.path} has not the name of its content, {part.sha256}"
    return ""


def by_file(shards: Iterable[Shard]) -> Iterator[tuple[str, list[Shard]]]:
    """Yield the name of each input file with its shards, which follow each other."""
    for name, group in groupby(shards, key=lambda shard: shard.name):
        yield name, list(group)


def find_base(
    output: Store, shards: Sequence[Shard], newest: PublishedRun | None
) -> PublishedRun | None:
    """Return the published run that shards can be taken from.

    It is the newest one by the same model, settings and method, as back to the settings of two runs
    ago; the newest of all where there is none. A run that `gc` has named may be removed at any
    moment, and is none of them.
    """
    if newest is None or not shards or has_answers_of(newest.head, shards[0]):
        return newest
    named = named_garbage(output)
    for head in published_runs(output):
        if has_answers_of(head, shards[0]) and run_path(head.run_id) not in named:
            return open_run(output, head)
    return newest


def has_answers_of(head: RunSummary, shard: Shard) -> bool:
    """Return whether a run's shards have the model, the settings and the method of a shard."""
    answers = (head.model_revision, head.settings_hash, head.method_version)
    return answers == (shard.model_revision, shard.settings_hash, shard.method_version)


def find_done(output: Store, shards: Sequence[Shard], base: PublishedRun | None) -> DoneShards:
    """Return which shards need not be computed.

    Args:
        output: the output.
        shards: those of the run that is planned.
        base: the published run that shards are taken from, if there is one (`find_base`).
    """
    receipts = latest_receipts(output)
    if base is None and not receipts:
        return DoneShards()
    listing = Listing(output)
    published = frozenset[str]()
    if base is not None:
        published = published_shards(base, shards, listing)
    fences = {
        shard.shard_id: receipts[shard.shard_id]
        for shard in shards
        if shard.shard_id in receipts and shard.shard_id not in published
    }
    sound = sound_receipts(output, fences, listing)
    return DoneShards(published, frozenset(receipt.shard.shard_id for receipt in sound))


def records_of_done(
    output: Store, done: DoneShards, base: PublishedRun | None
) -> Iterator[ShardRecord]:
    """Yield the records of shards that need not be computed, few of them in memory at once."""
    if base is not None and done.published:
        for record in base.records():
            if record.shard.shard_id in done.published:
                yield record
    yield from receipts_of_done(output, done)


def receipts_of_done(output: Store, done: DoneShards) -> list[Receipt]:
    """Return the receipts of the shards that are done by these."""
    if not done.with_receipts:
        return []
    fences = latest_receipts(output)
    return read_receipts(output, {id: fences[id] for id in sorted(done.with_receipts)})


def published_shards(
    run: PublishedRun, shards: Sequence[Shard], listing: Listing
) -> frozenset[str]:
    """Return the ids of those shards that a published run has, and whose parts are there."""

    if not shards or not has_answers_of(run.head, shards[0]):
        return frozenset()
    entries = run.entries  # read before there are threads

    def of_file(item: tuple[str, list[Shard]]) -> set[str]:
        name, own = item
        entry = entries.get(name)
        ids = {shard.shard_id for shard in own}
        if entry is None:
            return set()
        if listing.has_file(entry, list(ids)):
            return ids
        if entry.manifest and not listing.has_manifest(entry):
            return set()
        records = [record for record in run.records_of(name) if record.shard.shard_id in ids]
        return {record.shard.shard_id for record in records if not listing.problem_of(record)}

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return frozenset[str]().union(*pool.map(of_file, by_file(shards)))


def sound_receipts(output: Store, fences: Mapping[str, int], listing: Listing) -> list[Receipt]:
    """Return the receipts of shards, by their numbers, whose parts are there and stay there."""
    if not fences:
        return []
    found = read_receipts(output, fences)
    named = named_garbage(output)
    return [
        receipt
        for receipt in found
        if not listing.problem_of(receipt) and named.isdisjoint(part.path for part in receipt.parts)
    ]


def receipts_since(
    output: Store, head: RunSummary, listing: Listing, shard_ids: Collection[str] | None = None
) -> dict[str, Receipt]:
    """Return, by shard, the receipts of runs that came after a published one and have parts.

    These are runs that were stopped before they were published.

    Args:
        output: the output.
        head: the published run.
        listing: of the output.
        shard_ids: the shards that are looked for. None: all.
    """
    later = {
        shard_id: fence
        for shard_id, fence in latest_receipts(output).items()
        if fence > head.fence and (shard_ids is None or shard_id in shard_ids)
    }
    return {receipt.shard.shard_id: receipt for receipt in sound_receipts(output, later, listing)}
