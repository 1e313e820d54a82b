"""What a second worker adds, and what the pipeline around the engine costs."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from distributed import Client, LocalCluster
from PIL import Image

from flows.cluster import SHARDS_PER_WORKER
from flows.segment import run_shards
from schemas.runs import Plan, Receipt
from schemas.settings import RunSettings
from tasks.worker import ResidentModel
from tests.benchmarks.harness import Report, Target, main, paired
from tests.benchmarks.models import Work, default_model
from tests.benchmarks.tables import plan_of, scene_table, work_through

SHARD_ROWS = 64


def run(quick: bool) -> Report:
    """Two workers against one, one thread each; and the pipeline in one process against the engine alone."""
    with tempfile.TemporaryDirectory() as folder:
        rows = 256 if quick else 1024
        settings = scene_table(Path(folder), rows, distinct=rows, shard_rows=SHARD_ROWS)
        segmenter = default_model()
        plan = plan_of(settings, segmenter)
        receipts: list[Receipt] = []

        def pipeline() -> None:
            receipts[:] = work_through(plan, settings, segmenter)

        work = _decoded(settings)
        times = paired(
            {"pipeline": pipeline, "engine": lambda: [answer.result() for _, answer in segmenter.stream(work.asked())]},
            repeats=2 if quick else 5,
        )
        overhead = times.ratio("engine", "pipeline")
        busy = sum(r.timings.infer for r in receipts) / sum(r.timings.infer + r.timings.idle for r in receipts)
        gain, per_worker = _workers(plan, settings, segmenter.revision, repeats=1 if quick else 3)
    results = {
        "rows": rows, "engine, rows/s": rows / times.median("engine"), "pipeline, rows/s": rows / times.median("pipeline"),
        "1 worker, rows/s": per_worker[1], "2 workers, rows/s": per_worker[2], "model busy": busy,
    }  # fmt: skip
    targets = [
        Target("two workers over one", gain, at_least=1.85),
        Target("pipeline over engine alone", overhead, at_least=0.93),
        Target("share of the time in which the model is busy", busy, at_least=0.95),
    ]
    return Report(results, targets)


def _decoded(settings: RunSettings) -> Work:
    """The table's images, decoded."""
    rows = pq.read_table(settings.input).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    return Work(images, [[row["query"]] for row in rows])


def _workers(plan: Plan, settings: RunSettings, revision: str, repeats: int) -> tuple[float, dict[int, float]]:
    """How much faster two workers are than one, and rows a second of each; starting them is not counted."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with _cluster(1, settings, revision) as one, _cluster(2, settings, revision) as two:
        for turn in range(-1, repeats):  # the first turn warms them up
            for count, client in ((1, one), (2, two)) if turn % 2 else ((2, two), (1, one)):
                began = time.perf_counter()
                failures = run_shards(client, plan.shards, settings, lambda _: None)
                if failures:
                    raise RuntimeError(f"{failures[0][0].name}: {failures[0][1]}")
                if turn >= 0:
                    seconds[count].append(time.perf_counter() - began)
    gain = statistics.median(alone / together for alone, together in zip(seconds[1], seconds[2], strict=True))
    return gain, {count: plan.rows / statistics.median(taken) for count, taken in seconds.items()}


@contextmanager
def _cluster(workers: int, settings: RunSettings, revision: str) -> Iterator[Client]:
    """Worker processes of one numeric thread each, which hold the model."""
    options = {
        "processes": True,
        "threads_per_worker": SHARDS_PER_WORKER,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "memory_limit": 0,
    }
    with LocalCluster(n_workers=workers, silence_logs="CRITICAL", **options) as cluster, Client(cluster) as client:
        client.register_plugin(ResidentModel(settings.model, settings.segment, revision=revision, threads=1))
        yield client


if __name__ == "__main__":
    main("scaling", run, threads=1)
