"""The layout of an output, and the records in it. No other module spells these paths.

masks/part-SHARD-FENCE-DIGEST.parquet     rows that were answered
rejects/part-SHARD-FENCE-DIGEST.parquet   rows that were rejected
receipts/SHARD-FENCE.json                 a shard is done: both of its parts are written
manifests/FENCE-DIGEST.parquet            the shards of one input file, see `manifests.py`
indexes/FENCE-DIGEST.parquet              the manifests of a run
runs/RUN.json                             a run is published: readers read the parts of it
garbage/named.parquet                     files that can go, see `garbage.py`
leases/FENCE[-TOKEN].json                 the run at work, or the last one, see `lease.py`
lease.json                                the same, of older versions

FENCE is the number of the lease under which a file was written; older versions had none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

from pydantic import ValidationError

from wordmask.schemas.runs import PartLists, Receipt, RunSummary
from wordmask.schemas.settings import Frozen
from wordmask.tasks.storage import Store
from wordmask.tasks.telemetry.logs import logger

RUNS, RECEIPTS = "runs", "receipts"
MANIFESTS, INDEXES = "manifests", "indexes"
PART_KINDS = ("masks", "rejects")
LEASES = "leases"
OLD_LEASE_PATH = "lease.json"
GARBAGE_PATH = "garbage/named.parquet"
JSON, PARQUET = ".json", ".parquet"
DIGEST_DIGITS = 16  # of a part's SHA-256, in its name
RECORD_DIGITS = 32  # of a manifest's or an index's
OWN_FILES = (
    re.compile(rf"({'|'.join(PART_KINDS)})/part-[0-9a-f]{{32}}-(\d+-)?[0-9a-f]{{16}}\.parquet"),
    re.compile(rf"({MANIFESTS}|{INDEXES})/(\d+-)?[0-9a-f]{{32}}\.parquet"),
    re.compile(re.escape(GARBAGE_PATH)),
    re.compile(rf"({RUNS}|{RECEIPTS}|{LEASES})/[^/]+\.json"),
    re.compile(re.escape(OLD_LEASE_PATH)),
)
LEASE_NAME = re.compile(r"(\d{10})(-[0-9a-f]{32})?")
RUN_TIME = "%Y%m%dT%H%M%S.%f"
RUN_ID = re.compile(r"(\d{8}T\d{6}\.\d{6})-[0-9a-f]{6}")
RECEIPTS_AT_ONCE = 16


class OutputStatus(Frozen):
    """The content of an output: its published runs, newest first, and its shards.

    `shards` counts all that have a receipt, `unpublished` those that were done since the newest run
    was published.
    """

    runs: tuple[RunSummary, ...]
    shards: int
    unpublished: int


class ShardFile(NamedTuple):
    """A file in an output. `changed`: as in `FileInfo`.

    `shard_id`: of a receipt or part, else "". `fence`: the number of the lease under which it was
    written, 0 of a run's head and of files of older versions.
    """

    path: str
    shard_id: str
    fence: int
    bytes: int
    changed: str


def next_run_id(output: Store, latest: str = "") -> str:
    """Return a new run's id: the time and six random digits. It is greater than all published ones.

    Only the holder of the lease may ask: the newest run is the one with the greatest id, whatever
    clocks say. The time has microseconds; where the clock is behind the newest run, the id has that
    run's time and one microsecond.

    Args:
        output: the output.
        latest: the greatest id of a run that had the lease before. What it publishes, if it does so
            late, is not the newest then.
    """
    newest = max([latest, *published_ids(output)])
    now = datetime.now(UTC).strftime(RUN_TIME)
    digits = uuid4().hex[:6]
    if newest < now:
        return f"{now}-{digits}"
    logger.warning(
        "clock is behind the newest run: it is wrong here, or was where that run was made",
        extra={"clock": now, "newest_run": newest},
    )
    found = RUN_ID.fullmatch(newest)
    if found is None:
        return f"{newest}_{digits}"  # "_" comes after the "." of a file's suffix
    later = datetime.strptime(found[1], RUN_TIME) + timedelta(microseconds=1)
    return f"{later.strftime(RUN_TIME)}-{digits}"


def run_path(run_id: str) -> str:
    """Return the path of a published run's summary."""
    return f"{RUNS}/{run_id}{JSON}"


def receipt_path(shard_id: str, fence: int = 0) -> str:
    """Return the path of a shard's receipt that was written under a lease of that number.

    A worker that a run gave up writes under the number of that run, and so replaces no receipt of a
    later one. Older versions had no numbers, and count as 0.
    """
    name = shard_id
    if fence:
        name = f"{shard_id}-{fence}"
    return f"{RECEIPTS}/{name}{JSON}"


def part_path(kind: str, shard_id: str, digest: str, fence: int = 0) -> str:
    """Return the path of a shard's masks or rejects whose SHA-256 is `digest`.

    The name depends on the content. A worker that repeats the shard and finds other images writes
    another file, and a published one stays as it is. It depends on the lease, too: a name that `gc`
    may be about to remove is written by no later run.
    """
    return f"{kind}/part-{shard_id}-{_name_of(digest[:DIGEST_DIGITS], fence)}"


def manifest_path(digest: str, fence: int = 0) -> str:
    """Return the path of a manifest whose SHA-256 is `digest`, written under a lease."""
    return f"{MANIFESTS}/{_name_of(digest[:RECORD_DIGITS], fence)}"


def index_path(digest: str, fence: int = 0) -> str:
    """Return the path of an index whose SHA-256 is `digest`, written under a lease."""
    return f"{INDEXES}/{_name_of(digest[:RECORD_DIGITS], fence)}"


def _name_of(digest: str, fence: int) -> str:
    if fence:
        return f"{fence}-{digest}{PARQUET}"
    return f"{digest}{PARQUET}"


def is_named_by_content(path: str, digest: str) -> bool:
    """Return whether a part, manifest or index has the name of content with this SHA-256."""
    in_name = path.removesuffix(PARQUET).rpartition("/")[2].rpartition("-")[2]
    return bool(in_name) and digest.startswith(in_name)


def is_own_file(path: str) -> bool:
    """Return whether a path, relative to an output, is that of a file which runs or `gc` write."""
    return any(pattern.fullmatch(path) for pattern in OWN_FILES)


def lease_path(fence: int, token: str = "") -> str:
    """Return the path of a lease. Those of stores that create no file exclusively have a token."""
    if not token:
        return f"{LEASES}/{fence:010}{JSON}"
    return f"{LEASES}/{fence:010}-{token}{JSON}"


def lease_fences(output: Store) -> dict[str, int]:
    """Return the fencing numbers of the leases in an output, by path."""
    found = (LEASE_NAME.fullmatch(name) for name in output.names(LEASES, JSON))
    return {f"{LEASES}/{match[0]}{JSON}": int(match[1]) for match in found if match}


def recorded_fence(output: Store) -> int:
    """Return the highest fencing number in names of receipts and in the newest run; 0: none."""
    fences = list(latest_receipts(output).values())
    for run_id in published_ids(output)[-1:]:
        run = json.loads(output.read_bytes(run_path(run_id)))
        fences.append(run.get("fence", 0))
    return max(fences, default=0)


def publish(output: Store, summary: RunSummary) -> None:
    """Write a run's summary, which makes its parts visible to readers."""
    output.write_bytes(run_path(summary.run_id), summary.model_dump_json(indent=1).encode())


def published_ids(output: Store) -> list[str]:
    """Return the ids of the published runs, oldest first."""
    return sorted(output.names(RUNS, JSON))


def published_runs(output: Store) -> tuple[RunSummary, ...]:
    """Return the published runs, newest first."""
    return tuple(read_run(output, run_id) for run_id in reversed(published_ids(output)))


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
    return read_run(output, run_ids[-1])


def publication_time(output: Store, run_id: str) -> str:
    """Return when a run was published, to compare with `ShardFile.changed`."""
    return output.files(RUNS, JSON)[run_id].changed


def read_run(output: Store, run_id: str) -> RunSummary:
    """Return a published run. Of one of an older version, all but its lists."""
    fields = json.loads(output.read_bytes(run_path(run_id)))
    for name in PartLists.model_fields:
        fields.pop(name, None)
    return RunSummary.model_validate_json(json.dumps(fields))


def read_part_lists(output: Store, run_id: str) -> PartLists:
    """Return the lists of a run that an older version published."""
    return PartLists.model_validate_json(output.read_bytes(run_path(run_id)))


def write_receipt(output: Store, receipt: Receipt) -> None:
    """Write a shard's receipt, which makes the shard done. Both parts must be written before."""
    path = receipt_path(receipt.shard.shard_id, receipt.fence)
    output.write_bytes(path, receipt.model_dump_json(indent=1).encode())


def read_receipt(output: Store, shard_id: str, fence: int) -> Receipt | None:
    """Return a shard's receipt, or None if there is none that this version can read."""
    try:
        return Receipt.model_validate_json(output.read_bytes(receipt_path(shard_id, fence)))
    except (FileNotFoundError, ValidationError):
        return None


def read_receipts(output: Store, fences: Mapping[str, int]) -> list[Receipt]:
    """Return the receipts of shards, in their order, without those that cannot be read.

    Args:
        output: the output.
        fences: the number of the receipt to read, by shard.
    """
    with ThreadPoolExecutor(RECEIPTS_AT_ONCE) as pool:
        found = pool.map(lambda item: read_receipt(output, *item), fences.items())
        return [receipt for receipt in found if receipt is not None]


def latest_receipts(output: Store) -> dict[str, int]:
    """Return, for each shard that has a receipt, the highest number of one. None is read."""
    fences: dict[str, int] = {}
    for name in output.names(RECEIPTS, JSON):
        shard_id, fence = _shard_and_fence(name)
        fences[shard_id] = max(fence, fences.get(shard_id, fence))
    return fences


def newest_receipts(output: Store) -> dict[str, int]:
    """Return the shards that have a receipt, the one that was done last first, with its number."""
    fences: dict[str, int] = {}
    for name in output.newest(RECEIPTS, JSON):
        shard_id, fence = _shard_and_fence(name)
        fences.setdefault(shard_id, fence)
    return fences


def receipt_files(output: Store) -> list[ShardFile]:
    """Return the receipts of an output as files, sorted by path."""
    found = sorted(output.files(RECEIPTS, JSON).items())
    return [
        ShardFile(f"{RECEIPTS}/{name}{JSON}", *_shard_and_fence(name), *info)
        for name, info in found
    ]


def _shard_and_fence(name: str) -> tuple[str, int]:
    shard_id, *rest = name.split("-")
    return shard_id, _fence_in(rest)


def _fence_in(words: Sequence[str]) -> int:
    """Return the number of a lease, which is the only word where a name has one, else 0."""
    if len(words) != 1 or not words[0].isdigit():
        return 0
    return int(words[0])


def part_files(output: Store) -> list[ShardFile]:
    """Return the parts of an output, sorted by path."""
    found = []
    for kind in PART_KINDS:
        for name, info in sorted(output.files(kind, PARQUET).items()):
            shard_id, *rest, _ = name.removeprefix("part-").split("-")
            found.append(ShardFile(f"{kind}/{name}{PARQUET}", shard_id, _fence_in(rest), *info))
    return found


def record_files(output: Store) -> list[ShardFile]:
    """Return the manifests and indexes of an output, sorted by path."""
    found = []
    for folder in (INDEXES, MANIFESTS):
        for name, info in sorted(output.files(folder, PARQUET).items()):
            *rest, _ = name.split("-")
            found.append(ShardFile(f"{folder}/{name}{PARQUET}", "", _fence_in(rest), *info))
    return found


def run_files(output: Store) -> dict[str, ShardFile]:
    """Return the heads of the published runs as files, by run id."""
    found = sorted(output.files(RUNS, JSON).items())
    return {run_id: ShardFile(run_path(run_id), "", 0, *info) for run_id, info in found}


def status(output: Store) -> OutputStatus:
    """Return the content of an output. An empty or absent folder holds nothing."""
    runs = published_runs(output)
    receipts = receipt_files(output)
    published_at = publication_time(output, runs[0].run_id) if runs else ""
    since = {file.shard_id for file in receipts if file.changed > published_at}
    shards = {file.shard_id for file in receipts}
    return OutputStatus(runs=runs, shards=len(shards), unpublished=len(since))
