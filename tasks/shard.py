"""One shard from rows to receipt, in this process or as a task of a Dask worker."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType

from opentelemetry.trace import Span

from wordmask.schemas import method
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Part, Receipt, Shard, ShardHints, Timings
from wordmask.schemas.settings import FEW_MODEL_ERRORS, RunSettings
from wordmask.tasks.context import SegmenterLike, ShardContext
from wordmask.tasks.infer.checks import check_rows
from wordmask.tasks.infer.hints import apply_hints, reusable_answers
from wordmask.tasks.infer.stage import infer_rows
from wordmask.tasks.infer.turns import end_rows, ids_of_earlier_shards
from wordmask.tasks.output.catalog import write_receipt
from wordmask.tasks.rows import Row, ShardResult
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import read_rows
from wordmask.tasks.table.write import write_parts
from wordmask.tasks.telemetry import logs, metrics, traces
from wordmask.tasks.telemetry.inherited import telemetry_settings
from wordmask.tasks.telemetry.shards import observed_shard
from wordmask.tasks.worker import resident_context, translate_device_errors, worker_name

NO_HINTS = ShardHints()


class ModelChangedError(RuntimeError):
    """The worker's model or code is not the one that was planned with."""


class RowsLostError(RuntimeError):
    """Rows of a shard that did not end as exactly one mask or reject: a fault of this program."""


class TooManyModelErrorsError(RuntimeError):
    """The model failed on so many rows of a shard that the rows are hardly to blame."""


def run_shard(
    shard: Shard,
    settings: RunSettings,
    hints: ShardHints = NO_HINTS,
    run_id: str = "",
    trace: Mapping[str, str] = MappingProxyType({}),
    fence: int = 0,
) -> Receipt:
    """Process a shard as a Dask task, with the resident model of the task's worker.

    The task is traced, logged and counted, and its errors quote no credentials.

    Args:
        shard: the rows to process.
        settings: the settings of the run.
        hints: how rows end that need not go to the model.
        run_id: the run, for logs and traces.
        trace: the span of the run (`traces.trace_context`).
        fence: the number of the lease under which the run works.

    Raises:
        UnhealthyWorkerError: the worker lacks a model of these settings, or its device is broken.
        Exception: as `process_shard`.
    """
    with observed_shard(shard, run_id, trace, worker_name()), translate_device_errors():
        context = resident_context(shard.model_revision, settings)
        return process_shard(shard, settings, context, hints, fence)


def process_shard(
    shard: Shard,
    settings: RunSettings,
    context: ShardContext,
    hints: ShardHints = NO_HINTS,
    fence: int = 0,
) -> Receipt:
    """Segment the rows of a shard and write masks, rejects and, last, the receipt.

    Running it again writes the same bytes under the same names, so that doing a shard twice does no
    harm. Rows that `hints` already decide are not given to the model.

    Raises:
        InputChangedError: the file was replaced since it was planned.
        ModelChangedError: the model has another revision than the plan, or the code's method
            another version.
        RowsLostError: rows were lost or doubled. Nothing is written then.
        TooManyModelErrorsError: more than `settings.max_model_errors` allows. Nothing is written.
        ModelFailsError: the model fails on a row that is known to work.
        OSError: the store failed for good.
    """
    timer = _StageTimer()
    _require_planned_method(shard)
    _require_planned_model(shard, context.segmenter)
    output = Store.open(settings.output)

    with timer.stage("read"):
        table = Store.open(shard.file)
        rows, schema = read_rows(table, shard, settings.segment, context.readers)

    with logs.redacted_errors(row.query for row in rows):
        with timer.stage("infer") as span:
            open_rows, settled = apply_hints(rows, hints, output)
            result = end_rows(
                open_rows,
                shard,
                settings,
                context,
                settled=settled,
                reusable=reusable_answers(hints, output),
                wanted_since=timer.began,
            )
            _require_each_row_once(result, rows, shard)
            _require_few_model_errors(result, shard, settings)
            span.set_attributes(_span_attributes(result))

        with timer.stage("write"):
            parts = write_parts(result, shard, settings.segment, schema, output, fence)

    receipt = _make_receipt(shard, result, parts, context, timer, fence)
    # Last of all: where there is a receipt, both parts are whole.
    write_receipt(output, receipt)
    metrics.count(receipt)
    _log_result(receipt, result)
    return receipt


def try_rows(shard: Shard, settings: RunSettings, start: int, stop: int) -> None:
    """Work on rows start..stop of a shard as a Dask task and forget the results.

    Whether the worker survives tells if the rows are to blame for its deaths.
    """
    with translate_device_errors():
        context = resident_context(shard.model_revision, settings)
        rows, _ = read_rows(Store.open(shard.file), shard, settings.segment, context.readers)
        answered = ids_of_earlier_shards(rows, shard)
        tried = [row for row in rows[start:stop] if row.row_id not in answered]
        sound, _ = check_rows(tried, context.segmenter)
        infer_rows(sound, shard, settings, context)


class _StageTimer:
    """The seconds and the spans of a shard's stages."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.started_at = datetime.now(UTC)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Generator[Span]:
        began = time.perf_counter()
        with traces.span(name) as span:
            yield span
        self.seconds[name] = time.perf_counter() - began


def _require_planned_method(shard: Shard) -> None:
    if shard.method_version != method.METHOD_VERSION:
        raise ModelChangedError(
            f"planned with method version {shard.method_version}, but this worker's code has"
            f" {method.METHOD_VERSION}. Install the same version of wordmask on every worker, and"
            " run again"
        )


def _require_planned_model(shard: Shard, segmenter: SegmenterLike) -> None:
    if segmenter.revision != shard.model_revision:
        raise ModelChangedError(
            f"planned with model revision {shard.model_revision}, but the worker has"
            f" {segmenter.revision}. Run again"
        )


def _require_each_row_once(result: ShardResult, rows: Sequence[Row], shard: Shard) -> None:
    ended = Counter(each.row.position for each in result.results)
    positions = {row.position for row in rows} | ended.keys()
    wrong = sorted(position for position in positions if ended[position] != 1)
    if wrong or not len(rows) == ended.total() == shard.rows:
        raise RowsLostError(
            f"{shard.name}: {shard.rows} rows planned, {len(rows)} read, {ended.total()} ended;"
            f" lost or doubled: {wrong[:10]}. This is a fault of wordmask; nothing was written for"
            " this shard"
        )


def _require_few_model_errors(result: ShardResult, shard: Shard, settings: RunSettings) -> None:
    failed = [each for each in result.rejects if each.code is RejectCode.MODEL_ERROR]
    share = len(failed) / max(1, shard.rows)
    limit = settings.max_model_errors
    if len(failed) <= FEW_MODEL_ERRORS or share <= limit:
        return
    raise TooManyModelErrorsError(
        f"{shard.label}: {len(failed)} of {shard.rows} rows ended as model_error, a share of"
        f" {share:.3g}, and max_model_errors = {limit:g} at most; nothing was written for this"
        f" shard. The first: {failed[0].detail}. Mend what makes the model fail, or allow it with"
        " --max-model-errors 1"
    )


def _make_receipt(
    shard: Shard,
    result: ShardResult,
    parts: tuple[Part, Part],
    context: ShardContext,
    timer: _StageTimer,
    fence: int,
) -> Receipt:
    masks, rejects = parts
    codes = Counter(reject.code.value for reject in result.rejects)
    return Receipt(
        shard=shard,
        masks=masks.rows,
        absent=result.absent,
        rejects=dict(sorted(codes.items())),
        masks_part=masks,
        rejects_part=rejects,
        copied=result.copied,
        environment=dict(context.environment),
        fence=fence,
        timings=Timings(
            read=timer.seconds["read"],
            infer=result.infer_seconds,
            idle=result.idle_seconds,
            write=timer.seconds["write"],
            total=time.perf_counter() - timer.began,
        ),
        worker=platform.node(),
        started_at=timer.started_at.isoformat(timespec="seconds"),
    )


def _span_attributes(result: ShardResult) -> dict[str, int | float]:
    return {
        "masks": len(result.masks),
        "rejects": len(result.rejects),
        "copied": result.copied,
        "busy_seconds": result.infer_seconds,
        "idle_seconds": result.idle_seconds,
    }


def _log_result(receipt: Receipt, result: ShardResult) -> None:
    with_queries = telemetry_settings().log_queries
    for reject in result.rejects:
        extra: dict[str, str | None] = {
            "row_id": reject.row.row_id,
            "code": reject.code.value,
            "detail": reject.detail,
        }
        if with_queries:
            extra["query"] = reject.row.query
        logs.logger.info("row rejected", extra=extra)
    counts = {
        "rows": receipt.rows,
        "masks": receipt.masks,
        "rejected": receipt.rejected,
        "copied": receipt.copied,
    }
    logs.logger.info("shard done", extra={**counts, "seconds": round(receipt.timings.total, 3)})
