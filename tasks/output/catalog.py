"""The layout of an output, and the records in it. No other module spells these paths.

masks/part-SHARD-DIGEST.parquet     rows that were answered
rejects/part-SHARD-DIGEST.parquet   rows that were rejected
receipts/SHARD.json                 a shard is done: both of its parts are written
runs/RUN.json                       a run is published: readers read the parts that it names
lease.json                          the run at work, see `tasks/output/lease.py`
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from wordmask.schemas.runs import Receipt, RunSummary
from wordmask.schemas.settings import Frozen
from wordmask.tasks.storage import Store

RUNS, RECEIPTS = "runs", "receipts"
PART_KINDS = ("masks", "rejects")
LEASE_PATH = "lease.json"
JSON, PARQUET = ".json", ".parquet"
DIGEST_DIGITS = 16  # of a part's SHA-256, in its name
PART_PATH = re.compile(rf"({'|'.join(PART_KINDS)})/part-[0-9a-f]{{32}}-[0-9a-f]{{16}}\.parquet")
RECEIPTS_AT_ONCE = 16


class OutputStatus(Frozen):
    """The content of an output: its published runs, newest first, and its shards.

    `shards` counts all that are done, `unpublished` those that no published run names (yet).
    """

    runs: tuple[RunSummary, ...]
    shards: int
    unpublished: int


class ShardFile(NamedTuple):
    """A receipt or a part in an output. `changed`: as in `FileInfo`."""

    path: str
    shard_id: str
    bytes: int
    changed: str


def new_run_id() -> str:
    """Return a new run's id: the time and six random digits.

    The time has microseconds, so that the newest run has the last name also among runs of one
    second.
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid4().hex[:6]}"


def run_path(run_id: str) -> str:
    """Return the path of a published run's summary."""
    return f"{RUNS}/{run_id}{JSON}"


def receipt_path(shard_id: str) -> str:
    """Return the path of a shard's receipt."""
    return f"{RECEIPTS}/{shard_id}{JSON}"


def part_path(kind: str, shard_id: str, digest: str) -> str:
    """Return the path of a shard's masks or rejects whose SHA-256 is `digest`.

    The name depends on the content. A worker that repeats the shard and finds other images writes
    another file, and a published one stays as it is.
    """
    return f"{kind}/part-{shard_id}-{digest[:DIGEST_DIGITS]}{PARQUET}"


def is_part_path(path: str) -> bool:
    """Return whether a path, relative to an output, is that of a part."""
    return PART_PATH.fullmatch(path) is not None


def publish(output: Store, summary: RunSummary) -> None:
    """Write a run's summary, which makes its parts visible to readers."""
    output.write_bytes(run_path(summary.run_id), summary.model_dump_json(indent=1).encode())


def published_ids(output: Store) -> list[str]:
    """Return the ids of the published runs, oldest first."""
    return sorted(output.names(RUNS, JSON))


def published_runs(output: Store) -> tuple[RunSummary, ...]:
    """Return the published runs, newest first."""
    return tuple(_read_run(output, run_id) for run_id in reversed(published_ids(output)))


def newest_run(output: Store) -> RunSummary:
    """Return the newest published run, whose shards are what a reader reads.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = newest_run_if_any(output)
    if run is None:
        raise FileNotFoundError(
            f"{output.root}: no published run there. Run `wordmask run` first, or check the path"
        )
    return run


def newest_run_if_any(output: Store) -> RunSummary | None:
    """Return the newest published run, or None if nothing was published."""
    run_ids = published_ids(output)
    if not run_ids:
        return None
    return _read_run(output, run_ids[-1])


def publication_time(output: Store, run_id: str) -> str:
    """Return when a run was published, to compare with `ShardFile.changed`."""
    return output.files(RUNS, JSON)[run_id].changed


def _read_run(output: Store, run_id: str) -> RunSummary:
    return RunSummary.model_validate_json(output.read_bytes(run_path(run_id)))


def write_receipt(output: Store, receipt: Receipt) -> None:
    """Write a shard's receipt, which makes the shard done. Both parts must be written before."""
    path = receipt_path(receipt.shard.shard_id)
    output.write_bytes(path, receipt.model_dump_json(indent=1).encode())


def read_receipt(output: Store, shard_id: str) -> Receipt:
    """Return a shard's receipt.

    Raises:
        FileNotFoundError: the shard is not done.
        ValidationError: the receipt is that of another version.
    """
    return Receipt.model_validate_json(output.read_bytes(receipt_path(shard_id)))


def read_receipts(output: Store, shard_ids: Iterable[str]) -> list[Receipt]:
    """Return the receipts of shards, in their order. Raises as `read_receipt` does."""
    with ThreadPoolExecutor(RECEIPTS_AT_ONCE) as pool:
        return list(pool.map(lambda shard_id: read_receipt(output, shard_id), shard_ids))


def done_shards(output: Store) -> set[str]:
    """Return the ids of the shards that have a receipt."""
    return output.names(RECEIPTS, JSON)


def newest_shards(output: Store) -> list[str]:
    """Return the ids of the shards that have a receipt, the one that was done last first."""
    return output.newest(RECEIPTS, JSON)


def receipt_files(output: Store) -> list[ShardFile]:
    """Return the receipts of an output as files, sorted by path."""
    found = sorted(output.files(RECEIPTS, JSON).items())
    return [ShardFile(receipt_path(shard_id), shard_id, *info) for shard_id, info in found]


def part_files(output: Store) -> list[ShardFile]:
    """Return the parts of an output, sorted by path."""
    found = []
    for kind in PART_KINDS:
        for name, info in sorted(output.files(kind, PARQUET).items()):
            shard_id = name.removeprefix("part-").split("-")[0]
            found.append(ShardFile(f"{kind}/{name}{PARQUET}", shard_id, *info))
    return found


def status(output: Store) -> OutputStatus:
    """Return the content of an output. An empty or absent folder holds nothing."""
    runs = published_runs(output)
    done = done_shards(output)
    published = {shard_id for run in runs for shard_id in run.shard_ids}
    return OutputStatus(runs=runs, shards=len(done), unpublished=len(done - published))
