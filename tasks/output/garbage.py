"""Files of an output that no published run names any more, and their removal in two phases.

These are parts and receipts of other settings, models and inputs, and of runs given up. One `gc`
names what can go, in an object of the output; an hour later or more another one removes what it
finds named there, if no kept run names it by then. So nothing is removed on the strength of one
look, however long the process stood still after it. What is named is never taken up by a run, and
no run writes a file of that name again: the names have the numbers of leases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from wordmask.schemas.settings import Frozen
from wordmask.tasks.objects import REMOVED_AT_ONCE, remove_many
from wordmask.tasks.output.catalog import (
    GARBAGE_PATH,
    ShardFile,
    part_files,
    publication_time,
    published_runs,
    receipt_files,
    record_files,
    run_files,
)
from wordmask.tasks.output.claims import newest_fence
from wordmask.tasks.output.lease import LeaseHandle
from wordmask.tasks.output.manifests import parquet_bytes
from wordmask.tasks.output.published import kept_paths
from wordmask.tasks.storage import Store

NAMED_FOR = timedelta(hours=1)  # at least, before it is removed
NAMED = pa.schema(
    {
        "path": pa.string(),
        "shard_id": pa.string(),
        "bytes": pa.int64(),
        "changed": pa.string(),
        "named_at": pa.string(),
        "fence": pa.int64(),
    }
)


class Garbage(Frozen):
    """Files of an output, and how many of its runs are kept.

    Runs, their records and receipts come before parts: a shard without a receipt is not done, so
    that a removal that stops half-way leaves shards that are computed anew rather than trusted.
    """

    runs_kept: int
    files: tuple[ShardFile, ...] = Field(exclude=True)

    @property
    def shards(self) -> int:
        """Shards that some of the files belong to."""
        return len({file.shard_id for file in self.files if file.shard_id})

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, relative to the output."""
        return tuple(file.path for file in self.files)

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return sum(file.bytes for file in self.files)


class Collected(Frozen):
    """The result of a `gc`: files that it named for a later one, and files that it removed."""

    named: Garbage
    removed: Garbage


def named_garbage(output: Store) -> set[str]:
    """Return the paths of the files that are named, and may be removed at any moment."""
    return set(_named_before(output))


def name_garbage(output: Store, keep_runs: int | None = None) -> Collected:
    """Name the files that can be removed, for a later `collect_garbage`, and remove none.

    No lease is needed: what a run at work has written is not named. Raises as `find_garbage` does.
    """
    found = find_garbage(output, keep_runs)
    _write_names(output, found.files, _named_before(output), newest_fence(output))
    nothing = found.model_copy(update={"files": ()})
    return Collected(named=found, removed=nothing)


def collect_garbage(output: Store, lease: LeaseHandle, keep_runs: int | None = None) -> Collected:
    """Remove the files that an earlier `gc` named and that still can go, and name the others.

    A file that was written again since it was named stays.

    Args:
        output: the output.
        lease: of this process: no run may be about to publish what is removed. It is asked for
            before each request.
        keep_runs: as in `find_garbage`.

    Raises:
        FileNotFoundError: nothing was published, so that everything would go.
        LeaseLostError: another process took the output over. Some of the files may be removed.
    """
    found = find_garbage(output, keep_runs)
    before = _named_before(output)
    old = [file for file in found.files if _can_go(file, before)]
    new = [file for file in found.files if not _can_go(file, before)]
    remove_files(output, old, lease.require)
    removed = {file.path for file in old}
    _write_names(output, new, before, lease.fence, removed)
    return Collected(
        named=found.model_copy(update={"files": tuple(new)}),
        removed=found.model_copy(update={"files": tuple(old)}),
    )


def remove_files(output: Store, files: Sequence[ShardFile], require: Callable[[], None]) -> None:
    """Remove files, in the order of their folders, many by one request.

    Args:
        output: the output.
        files: the files.
        require: called before each request; what it raises stops the removal.
    """
    for batch in _batches(files):
        require()
        remove_many(output, batch)


def find_garbage(output: Store, keep_runs: int | None = None) -> Garbage:
    """Return the files that can be removed.

    What was written under a later lease than that of the newest run is kept, and so are shards that
    were done since it was published: a run that was stopped, by its budget or by Ctrl-C, goes on
    from them, and one at work may be about to publish them.

    Args:
        output: the output.
        keep_runs: how many of the newest published runs are kept, with their shards; None keeps
            all.

    Raises:
        FileNotFoundError: nothing was published, so that everything would go.
    """
    runs = published_runs(output)
    if not runs:
        raise FileNotFoundError(
            f"{output.root}: no published run there, so that all would go. Run `wordmask run` to"
            " its end first"
        )
    kept = runs[:keep_runs]
    receipts = receipt_files(output)
    parts = part_files(output)
    published_at = publication_time(output, runs[0].run_id)
    recent = {file.shard_id for file in receipts if file.changed >= published_at}
    paths_kept = kept_paths(output, kept)
    shards_kept = recent | {file.shard_id for file in parts if file.path in paths_kept}
    heads_kept = {run.run_id for run in kept}
    heads = [file for run_id, file in run_files(output).items() if run_id not in heads_kept]
    records = [file for file in record_files(output) if file.path not in paths_kept]
    receipts = [file for file in receipts if file.shard_id not in shards_kept]
    parts = [file for file in parts if file.shard_id not in recent and file.path not in paths_kept]
    found = [*heads, *records, *receipts, *parts]
    files = tuple(file for file in found if file.fence <= runs[0].fence)
    return Garbage(runs_kept=len(kept), files=files)


def _batches(files: Iterable[ShardFile]) -> Iterator[list[str]]:
    """Yield paths of one folder, as many as one request may remove."""
    for _, group in groupby(files, lambda file: file.path.split("/")[0]):
        paths = [file.path for file in group]
        for start in range(0, len(paths), REMOVED_AT_ONCE):
            yield paths[start : start + REMOVED_AT_ONCE]


def _can_go(file: ShardFile, named: dict[str, dict[str, Any]]) -> bool:
    """Return whether a file was named long enough ago, and not written since.

    A run that took it up before it was named, and has not published yet, has that time to end.
    """
    if not _is_unchanged(file, named):
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(named[file.path]["named_at"])
    return age >= NAMED_FOR


def _is_unchanged(file: ShardFile, named: dict[str, dict[str, Any]]) -> bool:
    """Return whether a file was named, and not written since."""
    before = named.get(file.path)
    return before is not None and (before["bytes"], before["changed"]) == (
        file.bytes,
        file.changed,
    )


def _named_before(output: Store) -> dict[str, dict[str, Any]]:
    """Return what an earlier `gc` named, by path; nothing where its object cannot be read."""
    try:
        table = pq.read_table(pa.BufferReader(output.read_bytes(GARBAGE_PATH)))
    except (FileNotFoundError, pa.ArrowInvalid):
        return {}
    if table.schema.names != NAMED.names:
        return {}
    return {row["path"]: row for row in table.to_pylist()}


def _write_names(
    output: Store,
    files: Sequence[ShardFile],
    before: dict[str, dict[str, Any]],
    fence: int,
    removed: Collection[str] = (),
) -> None:
    """Write the names of files, with when and after which lease each was named first.

    What was named before stays so until it is removed, also where another `gc` would keep it: the
    one that named it may be about to remove it.
    """
    if not files and not before:
        return
    named_at = datetime.now(UTC).isoformat(timespec="seconds")
    named = {path: row for path, row in before.items() if path not in removed}
    for file in files:
        if not _is_unchanged(file, before):
            # Not the number under which it was written, but that after which it was named.
            named[file.path] = file._asdict() | {"named_at": named_at, "fence": fence}
    table = pa.Table.from_pylist(list(named.values()), NAMED)
    output.write_bytes(GARBAGE_PATH, parquet_bytes(table))
