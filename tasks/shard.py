"""One shard from rows to receipt: what a Dask worker is given to do."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Receipt, Shard, ShardHints, Timings, receipt_path
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.infer.stage import Reject, ShardResult, copy_of, infer
from wordmask.tasks.output.catalog import read_receipts
from wordmask.tasks.output.reuse import answers_of, rejects_of
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import Row, read_rows
from wordmask.tasks.table.write import write_parts
from wordmask.tasks.telemetry import logs, metrics, traces
from wordmask.tasks.worker import (
    SegmenterLike,
    model_lock,
    resident_segmenter,
    translate_device_errors,
    worker_name,
)

NO_HINTS = ShardHints()
KILLED = "every process that worked on this row alone died; the rows beside it did not harm it"


class ModelChangedError(RuntimeError):
    """The worker's model is not the one that was planned with."""


class RowsLostError(RuntimeError):
    """Rows of a shard that did not end as exactly one mask or reject: a fault of this program."""


def process_shard(
    shard: Shard,
    settings: RunSettings,
    segmenter: SegmenterLike | None = None,
    hints: ShardHints = NO_HINTS,
    run_id: str = "",
    within: Mapping[str, str] = MappingProxyType({}),
) -> Receipt:
    """Segment the rows of a shard and write masks, rejects and, last, the receipt.

    Rows that `hints` already decide are not given to the model.

    Running it again writes the same bytes under the same names, so that doing a shard twice does no
    harm. The model is the process's resident one unless given; `run_id` is for the logs, and
    `within` (`traces.here` of the run) for the traces.

    Raises:
        InputChangedError: the file was replaced since it was planned.
        ModelChangedError: the resident model has another revision than the plan.
        UnhealthyWorkerError: the worker lacks a model of these settings, or its device is broken.
        RowsLostError: rows were lost or doubled. Nothing is written then.
        OSError: the store failed for good.
    """
    place: dict[str, str | int] = {"file": shard.name, "first_row": shard.first_row}
    span = traces.span(
        "shard", within, run_id=run_id, shard_id=shard.shard_id, rows=shard.rows, **place
    )
    with span, logs.log_context(run_id=run_id, shard_id=shard.shard_id), logs.redacted_errors():
        try:
            with metrics.shard_begun(), translate_device_errors():
                receipt = _process(shard, settings, segmenter, hints)
        except Exception:
            logs.logger.exception("shard failed", extra=place)
            raise
        finally:
            metrics.save(worker_name())
    return receipt


def _process(
    shard: Shard, settings: RunSettings, segmenter: SegmenterLike | None, hints: ShardHints
) -> Receipt:
    began, started_at = time.perf_counter(), datetime.now(UTC)
    segmenter = (
        resident_segmenter(shard.model_revision, settings.segment)
        if segmenter is None
        else segmenter
    )
    if segmenter.revision != shard.model_revision:
        raise ModelChangedError(
            f"planned with model revision {shard.model_revision}, but the worker has"
            f" {segmenter.revision}. Run again"
        )
    with traces.span("read"):
        rows, schema = read_rows(shard, settings.segment)
    read = time.perf_counter()
    output = Store.open(settings.output)
    with logs.redacted_errors(row.query for row in rows):
        with traces.span("infer") as span:
            answers = _answers(rows, shard, settings, segmenter, hints, output, began)
            span.set_attributes(
                {
                    "masks": len(answers.masks),
                    "rejects": len(answers.rejects),
                    "copied": answers.copied,
                }
            )
            span.set_attributes(
                {"busy_seconds": answers.infer_seconds, "idle_seconds": answers.idle_seconds}
            )
        inferred = time.perf_counter()
        with traces.span("write"):
            masks, rejects = write_parts(answers, shard, settings.segment, schema, output)
    done = time.perf_counter()
    receipt = Receipt(
        shard=shard,
        masks=masks.rows,
        absent=sum(mask.segmentation.status == "absent" for mask in answers.masks),
        rejects=dict(sorted(Counter(reject.code.value for reject in answers.rejects).items())),
        masks_part=masks,
        rejects_part=rejects,
        copied=answers.copied,
        timings=Timings(
            read=read - began,
            infer=answers.infer_seconds,
            idle=answers.idle_seconds,
            write=done - inferred,
            total=done - began,
        ),
        worker=platform.node(),
        started_at=started_at.isoformat(timespec="seconds"),
    )
    output.write_bytes(receipt_path(shard.shard_id), receipt.model_dump_json(indent=1).encode())
    metrics.count(receipt)
    _log(receipt, answers)
    return receipt


def _answers(
    rows: Sequence[Row],
    shard: Shard,
    settings: RunSettings,
    segmenter: SegmenterLike,
    hints: ShardHints,
    output: Store,
    began: float,
) -> ShardResult:
    """Every row's answer, in row order: of those that `hints` settle, and of the others asked."""
    answers = _known_answers(rows, shard, output, hints)
    ended = {mask.row.row for mask in answers.masks} | {
        reject.row.row for reject in answers.rejects
    }
    earlier = {
        answer.row_key: answer
        for answer in answers_of(output, read_receipts(output, hints.reuse_from))
    }
    asked = [row for row in rows if row.row not in ended]
    answers += infer(
        asked, shard, settings.segment, segmenter, settings.batch_rows, model_lock, began, earlier
    )
    answers.sort()
    _require_each_once(answers, rows, shard)
    return answers


def _log(receipt: Receipt, answers: ShardResult) -> None:
    for reject in answers.rejects:
        words = {"query": reject.row.query} if logs.is_asked(logs.LOG_QUERIES) else {}
        logs.logger.info(
            "row rejected",
            extra={
                "row_id": reject.row.row_id,
                "code": reject.code.value,
                "detail": reject.detail,
                **words,
            },
        )
    counts = {
        "rows": receipt.rows,
        "masks": receipt.masks,
        "rejected": receipt.rejected,
        "copied": receipt.copied,
    }
    logs.logger.info("shard done", extra={**counts, "seconds": round(receipt.timings.total, 3)})


def try_rows(shard: Shard, settings: RunSettings, start: int, stop: int) -> None:
    """Work on rows start..stop of a shard and forget the answers: to see whether the process lives
    on.
    """
    with translate_device_errors():
        rows, _ = read_rows(shard, settings.segment)
        segmenter = resident_segmenter(shard.model_revision, settings.segment)
        infer(rows[start:stop], shard, settings.segment, segmenter, settings.batch_rows, model_lock)


def _known_answers(
    rows: Sequence[Row], shard: Shard, output: Store, hints: ShardHints
) -> ShardResult:
    """Of the rows that need not be asked about: those that kill, and where some are tried again,
    all others.
    """
    answers = ShardResult(
        rejects=[
            Reject(row=rows[at], code=RejectCode.WORKER_KILLED, detail=KILLED)
            for at in hints.poison_rows
        ]
    )
    if hints.retry_codes:
        (receipt,) = read_receipts(output, [shard.shard_id])  # once: parts of one pair
        answers.masks = [
            copy_of(rows[answer.row], answer)
            for answer in answers_of(output, [receipt])
            if answer.row not in hints.poison_rows
        ]
        answers.copied = len(answers.masks)
        rejects = (
            reject
            for reject in rejects_of(output, receipt)
            if reject["row"] not in hints.poison_rows
        )
        kept = (reject for reject in rejects if reject["code"] not in hints.retry_codes)
        answers.rejects += [
            Reject(row=rows[r["row"]], code=RejectCode(r["code"]), detail=r["detail"]) for r in kept
        ]
    return answers


def _require_each_once(answers: ShardResult, rows: Sequence[Row], shard: Shard) -> None:
    ended = Counter(
        [mask.row.row for mask in answers.masks] + [reject.row.row for reject in answers.rejects]
    )
    wrong = sorted(
        number for number in {row.row for row in rows} | ended.keys() if ended[number] != 1
    )
    if wrong or not len(rows) == ended.total() == shard.rows:
        raise RowsLostError(
            f"{shard.name}: {shard.rows} rows planned, {len(rows)} read, {ended.total()} ended;"
            f" lost or doubled: {wrong[:10]}. This is a fault of wordmask; nothing was written for"
            " this shard"
        )
