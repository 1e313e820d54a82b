"""Answers that were computed before, so that the model works only on what is new.

New are the rows of a file that changed, and the rejected rows that are tried again. All other rows
are copied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from wordmask.model.types import Segmentation
from wordmask.schemas import method
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Part, Plan, RunSummary, Shard, ShardHints, ShardRecord
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.environment import is_possible, possible_environments
from wordmask.tasks.output.done import (
    DoneShards,
    Listing,
    by_file,
    receipts_of_done,
    receipts_since,
)
from wordmask.tasks.output.published import PublishedRun, open_newest_run
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store

# Fields of a Segmentation whose columns have another name or type.
CONVERTED = ("rle", "bbox", "coarse_bbox")
# Of rejects for which code, model or device may be to blame as well as the row.
RETRIED_CODES = (RejectCode.MODEL_ERROR, RejectCode.WORKER_KILLED)
UNCHANGED = tuple(field.name for field in fields(Segmentation) if field.name not in CONVERTED)


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """An answer of an earlier run, and the size of its image in pixels.

    `image_fingerprint`: what the image's store said of it then.
    """

    row: int
    row_key: str
    image_id: str
    height: int
    width: int
    segmentation: Segmentation
    image_fingerprint: str | None


def row_key(row: Row, image_id: str) -> str:
    """Return 32 hex digits of what a row's answer depends on in the row itself.

    The model, the settings and the version of the method are compared by themselves.
    """
    parts = json.dumps([image_id, row.query, row.spatial_refs])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def answers_of(output: Store, parts: Iterable[Part]) -> list[Earlier]:
    """Return the masks of parts that are by this version of the method.

    A part that is gone by now has none.
    """
    rows = [row for part in parts for row in rows_of(output, part)]
    # A part that was written before there was a version lacks the column.
    return [_earlier(row) for row in rows if row.get("method_version") == method.METHOD_VERSION]


def rows_of(output: Store, part: Part) -> list[dict[str, Any]]:
    """Return the rows of a part, or none if it is gone by now."""
    try:
        with output.parquet(part.path) as parquet:
            rows: list[dict[str, Any]] = parquet.read().to_pylist()
            return rows
    except FileNotFoundError:
        return []


def _earlier(row: dict[str, Any]) -> Earlier:
    segmentation = Segmentation(
        rle=row["mask"],
        bbox=tuple(row["bbox"]),
        coarse_bbox=tuple(row["coarse_bbox"]),
        **{name: row[name] for name in UNCHANGED},
    )
    return Earlier(
        row=row["row"],
        row_key=row["row_key"],
        image_id=row["image_id"],
        height=row["height"],
        width=row["width"],
        segmentation=segmentation,
        image_fingerprint=row.get("image_fingerprint"),
    )


def reuse_hints(
    settings: RunSettings,
    shards: Sequence[Shard],
    run: PublishedRun,
    done: Collection[str],
) -> dict[str, ShardHints]:
    """Return, for shards that are not done, the earlier masks whose equal rows can be copied.

    They are those of a published run, of rows of the same file and from about the same place in it.
    The file has changed since then, or a setting that no answer depends on, but most rows have not.
    Rows that moved by more than a shard are not found there, and computed anew.

    Args:
        settings: the settings of the run that is planned.
        shards: its shards.
        run: the published run.
        done: the ids of the shards that are done.
    """
    pending = [shard for shard in shards if shard.shard_id not in done]
    if not pending or not _same_answers(run.head, settings, pending[0].model_revision):
        return {}
    planned = {shard.shard_id for shard in shards}
    hints = {}
    for name, own in by_file(pending):
        records = run.records_of(name)
        earlier = [record for record in records if record.shard.shard_id not in planned]
        for shard in own:
            near = [record.masks_part for record in earlier if _is_near(record.shard, shard)]
            if near:
                hints[shard.shard_id] = ShardHints(reuse_from=tuple(near))
    return hints


def _same_answers(head: RunSummary, settings: RunSettings, model_revision: str) -> bool:
    """Return whether a run gave the answers that this code, other settings and a model give."""
    return (
        head.method_version == method.METHOD_VERSION
        and head.settings.segment.method == settings.segment.method
        and head.model_revision == model_revision
    )


def _is_near(old: Shard, shard: Shard) -> bool:
    """Return whether rows of `old` lie at most the length of `shard` away from its rows."""
    start = shard.first_row - shard.rows
    stop = shard.first_row + 2 * shard.rows
    return old.first_row < stop and old.first_row + old.rows > start


def changed_shards(newest: PublishedRun, pending: Sequence[Shard]) -> frozenset[str]:
    """Return the pending shards of files that the newest published run had too.

    Since then the file has changed, or the model, the settings or the division into shards.
    """
    return frozenset(shard.shard_id for shard in pending if shard.name in newest.entries)


def retry_hints(
    done: DoneShards, output: Store, base: PublishedRun | None, settings: RunSettings
) -> tuple[DoneShards, dict[str, ShardHints]]:
    """Take back shards with rejects that may end otherwise by now, and return hints for them.

    These are rejects for `RETRIED_CODES`, where the packages or the device are not those of then.
    With another model or method the shard is another one anyway.

    Args:
        done: shards that need not be computed otherwise.
        output: the output that has them.
        base: the published run that has them, if there is one.
        settings: the settings of the run that is planned.
    """
    published = _with_retried_rejects(_published_records(base, done))
    records = published | _with_retried_rejects(receipts_of_done(output, done))
    if not records:
        return done, {}
    possible = possible_environments(settings)
    outdated = {
        id: record
        for id, record in records.items()
        if not is_possible(record.environment, possible)
    }
    redone = _retried_since(output, base, outdated.keys() & published.keys(), possible)
    stale = outdated.keys() - redone
    hints = {
        id: ShardHints(retry_codes=RETRIED_CODES, earlier=outdated[id]) for id in sorted(stale)
    }
    left = DoneShards(done.published - outdated.keys(), (done.with_receipts | redone) - stale)
    return left, hints


def _published_records(base: PublishedRun | None, done: DoneShards) -> Iterator[ShardRecord]:
    """Yield the records of shards that count as done, of files with rejects for `RETRIED_CODES`.

    Nothing is read where the run has none.
    """
    if base is None or not _has_retried(base.head.rejects):
        return
    for name, entry in base.entries.items():
        if _has_retried(entry.rejects):
            records = base.records_of(name)
            yield from (each for each in records if each.shard.shard_id in done.published)


def _retried_since(
    output: Store,
    base: PublishedRun | None,
    shard_ids: Collection[str],
    possible: Sequence[Mapping[str, str]],
) -> frozenset[str]:
    """Return which published shards a run that was stopped has retried in this environment."""
    if base is None or not shard_ids:
        return frozenset()
    since = receipts_since(output, base.head, Listing(output), shard_ids)
    return frozenset(
        shard_id
        for shard_id, receipt in since.items()
        if is_possible(receipt.environment, possible)
    )


def _with_retried_rejects(records: Iterable[ShardRecord]) -> dict[str, ShardRecord]:
    return {record.shard.shard_id: record for record in records if _has_retried(record.rejects)}


def _has_retried(rejects: Mapping[str, int]) -> bool:
    return any(rejects.get(code) for code in RETRIED_CODES)


def retry_plan(output: Store, codes: Collection[RejectCode]) -> tuple[Plan, RunSettings]:
    """Return the plan to retry rejected rows of the newest published run, and its settings.

    The plan has all shards of that run. Shards in which no row was rejected for one of `codes`
    count as done. What a retry did that was stopped is taken up. The settings name the output as it
    was called then: it may have moved since.

    Raises:
        FileNotFoundError: nothing was published.
        InputError: another version of the method made that run. Rows of two versions would stand
            side by side.
    """
    run = open_newest_run(output)
    _require_same_version(run.head)
    listing = Listing(output)
    since = receipts_since(output, run.head, listing)
    shards: list[Shard] = []
    hints: dict[str, ShardHints] = {}
    published: set[str] = set()
    done: set[str] = set()
    for record in run.records():
        shard_id = record.shard.shard_id
        latest = since.get(shard_id, record)
        shards.append(record.shard)
        if any(latest.rejects.get(code) for code in codes):
            hints[shard_id] = ShardHints(retry_codes=tuple(codes), earlier=latest)
        elif not listing.problem_of(latest):
            done.add(shard_id)
            if shard_id not in since:
                published.add(shard_id)
    plan = Plan(
        shards=tuple(shards),
        done=frozenset(done),
        base_run=run.head.run_id,
        published=frozenset(published),
        hints=hints,
        gaps=run.head.gaps,
        files=len(run.entries),
        input_bytes=0,
        unusable=run.head.skipped,
        left_out=run.head.left_out,
    )
    return plan, run.head.settings


def _require_same_version(run: RunSummary) -> None:
    if run.method_version != method.METHOD_VERSION:
        raise InputError(
            f"run {run.run_id}: was made by method version {run.method_version}, and this code has"
            f" {method.METHOD_VERSION}. `wordmask run` computes the table anew, rejected rows too"
        )
