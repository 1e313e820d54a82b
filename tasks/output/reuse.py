"""Answers that were computed before, so that only what is new is asked of the model: rows of a file
that changed, and the rows beside rejected ones that are tried again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from wordmask.model.types import Segmentation
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Part, Plan, Receipt, RunSummary, Shard, ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import new_run_id, newest_run, read_receipts
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store

AS_THEY_ARE = tuple(
    field.name for field in fields(Segmentation) if field.name not in ("rle", "bbox", "coarse_bbox")
)


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """An answer of an earlier run, and the size of the image that it is about."""

    row: int
    row_key: str
    image_id: str
    height: int
    width: int
    segmentation: Segmentation


def row_key(row: Row, image_id: str) -> str:
    """32 hex digits of all that a row's answer depends on, besides the model and the settings."""
    return hashlib.sha256(json.dumps([image_id, row.query, row.spatial_refs]).encode()).hexdigest()[
        :32
    ]


def answers_of(output: Store, receipts: Iterable[Receipt]) -> list[Earlier]:
    """The masks of shards that were done before. A part that is gone by now has none."""
    return [_earlier(row) for receipt in receipts for row in _rows(output, receipt.masks_part)]


def rejects_of(output: Store, receipt: Receipt) -> list[dict[str, Any]]:
    """The rejects of a shard that was done before."""
    return _rows(output, receipt.rejects_part)


def _rows(output: Store, part: Part) -> list[dict[str, Any]]:
    try:
        with output.parquet(part.path) as parquet:
            found: list[dict[str, Any]] = parquet.read().to_pylist()
            return found
    except FileNotFoundError:
        return []


def _earlier(row: dict[str, Any]) -> Earlier:
    found = Segmentation(
        rle=row["mask"],
        bbox=tuple(row["bbox"]),
        coarse_bbox=tuple(row["coarse_bbox"]),
        **{name: row[name] for name in AS_THEY_ARE},
    )
    return Earlier(
        row=row["row"],
        row_key=row["row_key"],
        image_id=row["image_id"],
        height=row["height"],
        width=row["width"],
        segmentation=found,
    )


def earlier_answers(
    newest: RunSummary,
    pending: Sequence[Shard],
    shards: Sequence[Shard],
    settings: RunSettings,
    output: Store,
    receipts: Collection[str],
) -> dict[str, ShardHints]:
    """By pending shard, of which there is one at least, the shards of the newest published run with
    rows of the same file from about the same place, if they were done by the same model in the same
    way: the file has changed, or a setting that no answer depends on, but most rows may not have.
    Rows that moved by more than a shard are not found there, and computed anew."""
    if (
        newest.settings.segment.method != settings.segment.method
        or newest.model_revision != pending[0].model_revision
    ):
        return {}
    superseded = sorted({*newest.shard_ids} - {shard.shard_id for shard in shards} & {*receipts})
    names = {shard.name for shard in pending}
    old: dict[str, list[Shard]] = {name: [] for name in names}
    for receipt in read_receipts(output, superseded):
        if receipt.shard.name in names:
            old[receipt.shard.name].append(receipt.shard)
    found = {}
    for shard in pending:
        near = range(shard.first_row - shard.rows, shard.first_row + 2 * shard.rows)
        same = [
            o.shard_id
            for o in old[shard.name]
            if o.first_row < near.stop and o.first_row + o.rows > near.start
        ]
        if same:
            found[shard.shard_id] = ShardHints(reuse_from=tuple(same))
    return found


def changed_shards(newest: RunSummary, pending: Sequence[Shard]) -> frozenset[str]:
    """The pending shards of files that the newest published run had too: since then the file has
    changed, or the model, the settings or how it is cut."""
    return frozenset(shard.shard_id for shard in pending if shard.name in newest.files)


def retry_plan(output: Store, codes: Collection[RejectCode]) -> tuple[Plan, RunSettings]:
    """The shards of an output's newest published run, and the settings of that run.

    Shards in which no row was rejected for one of `codes` count as done. The settings name the
    output as it was called then: it may have moved since.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = newest_run(output)
    receipts = read_receipts(output, run.shard_ids)
    shards = tuple(receipt.shard for receipt in receipts)
    done = frozenset(
        r.shard.shard_id for r in receipts if not any(r.rejects.get(code) for code in codes)
    )
    hints = {
        shard.shard_id: ShardHints(retry_codes=tuple(codes))
        for shard in shards
        if shard.shard_id not in done
    }
    plan = Plan(
        run_id=new_run_id(),
        shards=shards,
        done=done,
        hints=hints,
        files=len({shard.file for shard in shards}),
        input_bytes=0,
    )
    return plan, run.settings
