"""One shard from rows to receipt: what a Dask worker is given to do."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from schemas.rejects import RejectCode
from schemas.runs import Receipt, Shard, Timings, receipt_path
from schemas.settings import RunSettings
from tasks.infer import Answers, Reject, infer
from tasks.read import Row, read_rows
from tasks.storage import Store
from tasks.worker import SegmenterLike, model_turn, resident_segmenter
from tasks.write import write_parts

KILLED = "every process that worked on this row alone died; the rows beside it did not harm it"


class ModelChangedError(RuntimeError):
    """The worker's model is not the one that was planned with."""


class RowsLostError(RuntimeError):
    """Rows of a shard that did not end as exactly one mask or reject: a fault of this program."""


def process_shard(shard: Shard, settings: RunSettings, segmenter: SegmenterLike | None = None, killers: tuple[int, ...] = ()) -> Receipt:
    """Segment the rows of a shard and write masks, rejects and, last, the receipt. `killers` are rows that are known to end the process
    (`try_rows`): they are rejected unseen.

    Running it again writes the same bytes under the same names, so that doing a shard twice does no harm. The model is
    the process's resident one unless given.

    Raises:
        InputChangedError: the file was replaced since it was planned.
        ModelChangedError: the resident model has another revision than the plan.
        NoModelError: the worker has no model of these settings.
        RowsLostError: rows were lost or doubled. Nothing is written then.
        OSError: the store failed for good.
    """
    began, started_at = time.perf_counter(), datetime.now(UTC)
    segmenter = resident_segmenter(shard.model_revision, settings.segment) if segmenter is None else segmenter
    if segmenter.revision != shard.model_revision:
        raise ModelChangedError(f"planned with model revision {shard.model_revision}, but the worker has {segmenter.revision}. Run again")
    rows, schema = read_rows(shard, settings.segment)
    read = time.perf_counter()
    answers = infer(
        [row for row in rows if row.row not in killers], shard, settings.segment, segmenter, settings.batch_rows, model_turn, began
    )
    answers.rejects += [Reject(row=row, code=RejectCode.WORKER_KILLED, detail=KILLED) for row in rows if row.row in killers]
    answers.sort()
    _require_each_once(answers, rows, shard)
    inferred = time.perf_counter()
    output = Store.open(settings.output)
    masks, rejects = write_parts(answers, shard, settings.segment, schema, output)
    done = time.perf_counter()
    receipt = Receipt(
        shard=shard,
        masks=masks.rows,
        absent=sum(mask.segmentation.status == "absent" for mask in answers.masks),
        rejects=dict(sorted(Counter(reject.code.value for reject in answers.rejects).items())),
        masks_part=masks,
        rejects_part=rejects,
        timings=Timings(
            read=read - began, infer=answers.infer_seconds, idle=answers.idle_seconds, write=done - inferred, total=done - began
        ),
        worker=platform.node(),
        started_at=started_at.isoformat(timespec="seconds"),
    )
    output.write_bytes(receipt_path(shard.shard_id), receipt.model_dump_json(indent=1).encode())
    return receipt


def try_rows(shard: Shard, settings: RunSettings, start: int, stop: int) -> None:
    """Work on rows start..stop of a shard and forget the answers: to see whether the process lives on."""
    rows, _ = read_rows(shard, settings.segment)
    segmenter = resident_segmenter(shard.model_revision, settings.segment)
    infer(rows[start:stop], shard, settings.segment, segmenter, settings.batch_rows, model_turn)


def _require_each_once(answers: Answers, rows: Sequence[Row], shard: Shard) -> None:
    ended = Counter([mask.row.row for mask in answers.masks] + [reject.row.row for reject in answers.rejects])
    wrong = sorted(number for number in {row.row for row in rows} | ended.keys() if ended[number] != 1)
    if wrong or not len(rows) == ended.total() == shard.rows:
        raise RowsLostError(
            f"{shard.name}: {shard.rows} rows planned, {len(rows)} read, {ended.total()} ended; lost or doubled: {wrong[:10]}. "
            "This is a fault of wordmask; nothing was written for this shard"
        )
