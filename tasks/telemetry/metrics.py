"""What a worker tells Prometheus, counted from the receipts that it writes.

Dask serves these metrics, beside its own, at /metrics of the worker's HTTP port (`dask worker
--dashboard-address :9101` makes it a known one). Where `METRICS_DIR` names a folder they are also
written to a file in it after each shard, for node_exporter's textfile collector. Rates are
Prometheus's to compute, as `rate(wordmask_rows_total[5m])`; the gauges of the last shard are for
whoever reads the file.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Metric, write_to_textfile
from prometheus_client.core import GaugeMetricFamily

from wordmask.schemas.runs import Receipt
from wordmask.tasks.telemetry.logs import METRICS_DIR, logger

PREFIX = "wordmask_"

ROWS = Counter("wordmask_rows", "Rows ended, as mask, as absent or rejected", ["ended"])
REJECTS = Counter("wordmask_rejects", "Rows rejected, by code", ["code"])
COPIED = Counter("wordmask_rows_copied", "Masks taken over from an earlier run")
SHARDS = Counter("wordmask_shards", "Shards ended", ["ended"])
SECONDS = Counter(
    "wordmask_shard_seconds",
    "Seconds of shards; infer: the model was busy, idle: it was not",
    ["stage"],
)
READ = Counter("wordmask_image_bytes", "Bytes of encoded images, each distinct one of a shard once")
WRITTEN = Counter("wordmask_written_bytes", "Bytes of written parts")
RETRIES = Counter(
    "wordmask_shard_retries", "Shards that a run tried again", ["reason"]
)  # counted in the run's process, as is the next
WAITING = Gauge("wordmask_shards_waiting", "Shards of the run that no worker has yet")
BEGUN = Gauge(
    "wordmask_shards_begun", "Shards that the worker is at: one has the model, one reads or writes"
)
SPEED = Gauge(
    "wordmask_rows_per_second",
    "Rows of the last shard over the seconds that the model was busy or idle for it",
)
BUSY = Gauge("wordmask_model_busy_share", "Share of these seconds in which it was busy, 0..1")
PEAK = Gauge("wordmask_peak_memory_bytes", "Most memory that the process ever held")


def peak_memory() -> float:
    """Most bytes that this process ever held, NaN where there is no /proc. (What getrusage says
    starts with the parent's.)
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return 1024.0 * int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0])


PEAK.set_function(peak_memory)


@contextmanager
def shard_begun() -> Iterator[None]:
    """Within, the worker is at one shard more. One that ends with an error has failed."""
    with BEGUN.track_inprogress(), SHARDS.labels("failed").count_exceptions():
        yield


def count(receipt: Receipt) -> None:
    """Add a shard that is done."""
    times = receipt.timings
    ROWS.labels("mask").inc(receipt.masks - receipt.absent)
    ROWS.labels("absent").inc(receipt.absent)
    ROWS.labels("rejected").inc(receipt.rejected)
    COPIED.inc(receipt.copied)
    for code, rows in receipt.rejects.items():
        REJECTS.labels(code).inc(rows)
    SHARDS.labels("done").inc()
    for stage in ("read", "infer", "idle", "write"):
        SECONDS.labels(stage).inc(getattr(times, stage))
    WRITTEN.inc(receipt.masks_part.bytes + receipt.rejects_part.bytes)
    SPEED.set(receipt.rows / (times.infer + times.idle) if times.infer else 0.0)
    BUSY.set(times.busy_share)


def save(name: str) -> None:
    """Write the metrics of this process, which is called so, if a folder was told; the file appears
    whole. That it cannot be written is logged once: who watches work does not end it."""
    folder = os.environ.get(METRICS_DIR)
    if not folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_to_textfile(
            str(Path(folder, f"wordmask-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.prom")),
            _Named(name),
        )
    except (
        Exception
    ) as error:  # a full disk, or a device that does not even tell its memory any more
        _log_once(folder, f"{type(error).__name__}: {error}")


@cache
def _log_once(folder: str, reason: str) -> None:
    logger.warning("metrics not written", extra={"folder": folder, "reason": reason})


class _Named:
    """Our metrics with the name of the process: node_exporter reads the files of all processes as
    one.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def collect(self) -> Iterator[Metric]:
        for metric in REGISTRY.collect():
            if metric.name.startswith(PREFIX):
                kept = (sample for sample in metric.samples if not sample.name.endswith("_created"))
                metric.samples = [
                    sample._replace(labels={**sample.labels, "worker": self._name})
                    for sample in kept
                ]
                yield metric


class _Gpus:
    """Memory and use of the GPUs that this process sees. PyTorch is asked only where it was loaded,
    and use needs `nvidia-ml-py`.
    """

    def collect(self) -> Iterator[Metric]:
        torch: Any = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return
        memory = GaugeMetricFamily(
            "wordmask_gpu_memory_bytes",
            "Memory of a GPU: used by all, most of this process",
            labels=["gpu", "what"],
        )
        use = GaugeMetricFamily(
            "wordmask_gpu_busy_share",
            "Share of the last moment in which a GPU computed, 0..1",
            labels=["gpu"],
        )
        for gpu in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(gpu)
            memory.add_metric([str(gpu), "total"], total)
            memory.add_metric([str(gpu), "used"], total - free)
            memory.add_metric([str(gpu), "peak"], torch.cuda.max_memory_allocated(gpu))
            try:
                use.add_metric([str(gpu)], torch.cuda.utilization(gpu) / 100)
            except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver that does not say
                continue
        yield memory
        yield use


REGISTRY.register(_Gpus())
