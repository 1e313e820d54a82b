"""What a worker tells of a shard from its begin to its end: a span, log records and metrics."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from wordmask.schemas.runs import Shard
from wordmask.tasks.telemetry import logs, metrics, traces


@contextmanager
def observed_shard(
    shard: Shard, run_id: str, trace: Mapping[str, str], worker: str
) -> Generator[None]:
    """Trace, log and count what is done within as work on a shard.

    An error is logged, and goes on without credentials. The metrics are saved in any case.

    Args:
        shard: the shard that is worked on.
        run_id: the run, which log records name.
        trace: the span of the run (`traces.trace_context`).
        worker: the process, which metrics name.
    """
    origin: dict[str, str | int] = {"file": shard.name, "first_row": shard.first_row}
    span = traces.span(
        "shard", trace, run_id=run_id, shard_id=shard.shard_id, rows=shard.rows, **origin
    )
    with span, logs.log_context(run_id=run_id, shard_id=shard.shard_id), logs.redacted_errors():
        try:
            with metrics.shard_begun():
                yield
        except Exception:
            logs.logger.exception("shard failed", extra=origin)
            raise
        finally:
            metrics.save(worker)
