"""What a second worker adds, and what the pipeline around the engine costs."""

from __future__ import annotations

import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from distributed import Client, LocalCluster
from PIL import Image

from tests.benchmarks.harness import Report, Target, main, paired
from tests.benchmarks.models import Work, default_model
from tests.benchmarks.tables import plan_of, scene_table, work_through
from wordmask.flows.execution.cluster import SHARDS_PER_WORKER
from wordmask.flows.execution.dispatcher import Dispatcher
from wordmask.schemas.runs import Receipt, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.worker import ResidentModel

PRODUCT_SECONDS = 1.0


def run(quick: bool) -> Report:
    """Two workers against one, one thread each, and the pipeline against the engine alone."""
    rows, shard_rows = (64, 16) if quick else (512, 64)
    with tempfile.TemporaryDirectory() as folder:
        settings = scene_table(Path(folder), rows, distinct=rows, shard_rows=shard_rows)
        segmenter = default_model()
        receipts: list[Receipt] = []
        whole = settings.model_copy(
            update={"shard_rows": RunSettings.model_fields["shard_rows"].default}
        )
        plan = plan_of(whole, segmenter)

        def pipeline() -> None:
            receipts[:] = work_through(plan, whole, segmenter)

        work = _decoded(settings)
        segmenter.segment(work.images[0], work.words[0][0])  # compiles what is compiled
        tasks = {
            "pipeline": pipeline,
            "engine": lambda: [answer.result() for _, answer in segmenter.stream(work.asked())],
        }
        times = paired(tasks, repeats=1 if quick else 3, warm_up=0)
        overhead = times.ratio("engine", "pipeline")
        busy = sum(r.timings.infer for r in receipts) / sum(
            r.timings.infer + r.timings.idle for r in receipts
        )
        shards = plan_of(settings, segmenter).shards
        gain, per_worker = _workers(shards, settings, segmenter.revision, repeats=1 if quick else 3)
    machine = _products(2) / _products(1)
    results = {
        "rows": rows,
        "engine, rows/s": rows / times.median("engine"),
        "pipeline, rows/s": rows / times.median("pipeline"),
        "1 worker, rows/s": per_worker[1],
        "2 workers, rows/s": per_worker[2],
        "model busy": busy,
        "two processes of plain products over one": machine,
        "two workers over one, share of that": gain / machine,
    }
    targets = [
        Target("two workers over one", gain, at_least=1.85),
        Target("pipeline over engine alone", overhead, at_least=0.93),
        Target("share of the time in which the model is busy", busy, at_least=0.95),
    ]
    return Report(results, targets)


def _decoded(settings: RunSettings) -> Work:
    """The table's images, decoded."""
    rows = pq.read_table(settings.input).to_pylist()
    images = [
        np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows
    ]
    return Work(images, [[row["query"]] for row in rows])


def _workers(
    shards: Sequence[Shard], settings: RunSettings, revision: str, repeats: int
) -> tuple[float, dict[int, float]]:
    """The speed-up of two workers over one, and rows a second of each, without their start."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    rows = sum(shard.rows for shard in shards)
    with _cluster(1, settings, revision) as one, _cluster(2, settings, revision) as two:
        clients = [(1, one), (2, two)]
        for count, client in clients:
            _timed_run(client, shards[:count], settings)  # warms them up
        for turn in range(repeats):
            for count, client in clients[:: 1 if turn % 2 else -1]:
                seconds[count].append(_timed_run(client, shards, settings))
    gain = statistics.median(
        alone / together for alone, together in zip(seconds[1], seconds[2], strict=True)
    )
    return gain, {count: rows / statistics.median(taken) for count, taken in seconds.items()}


def _timed_run(client: Client, shards: Sequence[Shard], settings: RunSettings) -> float:
    began = time.perf_counter()
    failures = Dispatcher(client, settings, lambda _: None).run(shards).failures
    if failures:
        raise RuntimeError(f"{failures[0][0].name}: {failures[0][1]}")
    return time.perf_counter() - began


def _products(processes: int) -> float:
    """Plain matrix products a second of so many processes of one thread.

    This is what a second process adds on this machine at the best.
    """
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(_products_alone, [0.1] * processes, chunksize=1)
        return sum(pool.map(_products_alone, [PRODUCT_SECONDS] * processes, chunksize=1))


def _products_alone(seconds: float) -> float:
    torch.set_num_threads(1)
    x, weight, done, began = torch.randn(1600, 192), torch.randn(192, 512), 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or not done:
        x @ weight
        done += 1
    return done / taken


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
    with (
        LocalCluster(n_workers=workers, silence_logs="CRITICAL", **options) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(
            ResidentModel(settings.model, settings.segment, revision=revision, threads=1)
        )
        yield client


if __name__ == "__main__":
    main("scaling", run, threads=1)
