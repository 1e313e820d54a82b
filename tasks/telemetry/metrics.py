"""Prometheus metrics of a worker, counted from the receipts that it writes.

Dask serves these metrics, beside its own, at /metrics of the worker's HTTP port, which `dask worker
--dashboard-address :9101` fixes. Where the settings name a folder (`metrics_dir`), a file in it has
them after each shard, for node_exporter's textfile collector. Prometheus computes rates, as
`rate(wordmask_rows_total[5m])`; the gauges of the last shard are for people who read the file.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Metric, write_to_textfile
from prometheus_client.core import GaugeMetricFamily

from wordmask.schemas.runs import Receipt
from wordmask.tasks.telemetry.inherited import telemetry_settings
from wordmask.tasks.telemetry.logs import logger

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
# These two are of the run's process, not of its workers.
RETRIES = Counter("wordmask_shard_retries", "Shards that a run tried again", ["reason"])
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
    """Return the most bytes that this process ever held, NaN where there is no /proc.

    `getrusage` would start with what the parent process held.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return 1024.0 * int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0])


PEAK.set_function(peak_memory)


@contextmanager
def shard_begun() -> Generator[None]:
    """Count one shard more in work within the block, and one failed if an error leaves it."""
    with BEGUN.track_inprogress(), SHARDS.labels("failed").count_exceptions():
        yield


def count(receipt: Receipt) -> None:
    """Add a shard that is done to the metrics."""
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
    rows_per_second = 0.0
    if times.infer:
        rows_per_second = receipt.rows / (times.infer + times.idle)
    SPEED.set(rows_per_second)
    BUSY.set(times.busy_share)


def save(name: str) -> None:
    """Write the metrics of this process to a file of its name, if the settings name a folder.

    The file appears whole. A failure is logged once and ends nothing: work goes on unwatched.
    """
    folder = telemetry_settings().metrics_dir
    if folder is None:
        return
    safe_name = re.sub(r"[^A-Za-z0-9.-]+", "-", name)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(Path(folder, f"wordmask-{safe_name}.prom")), _Named(name))
    except Exception as error:  # a full disk, or a device that does not even report its memory
        _log_once(folder, f"{type(error).__name__}: {error}")


@cache
def _log_once(folder: str, reason: str) -> None:
    logger.warning("metrics not written", extra={"folder": folder, "reason": reason})


class _Named:
    """The metrics of this package, labelled with the name of the process.

    node_exporter reads the files of all processes as one.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, without the times at which they were created."""
        for metric in REGISTRY.collect():
            if metric.name.startswith(PREFIX):
                metric.samples = [
                    sample._replace(labels={**sample.labels, "worker": self._name})
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ]
                yield metric


class _Gpus:
    """Memory and use of the GPUs that this process sees.

    There are none where PyTorch was not imported. Use needs `nvidia-ml-py`.
    """

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of each GPU."""
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
