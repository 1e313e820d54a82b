"""Peak memory of a worker as its table grows: it must not."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.harness import Report, Target, main
from tests.benchmarks.models import default_model
from tests.benchmarks.tables import plan_of, scene_table, work_through
from wordmask.flows.execution.cluster import worker_environ

SHARD_ROWS = (
    50  # two shards are in work at a time, so the first hundred rows show what a worker needs
)
DISTINCT = 200  # scenes in the table
GROWTH = 1.05
THREADS = 2


def run(quick: bool) -> Report:
    """Peak resident memory of one worker after 100, 1,000 and 10,000 rows of the default model."""
    counts = (100, 200, 400) if quick else (100, 1_000, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        # A process of its own: the peak of this one would have the drawing of scenes in it.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            settings = pool.apply(_table, (folder, counts[-1]))
        os.environ |= worker_environ(THREADS)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks = pool.apply(_peaks, (settings, counts))
    rows = [
        {"rows": count, "peak MB": peak / 1e6, "times the first": peak / peaks[0]}
        for count, peak in zip(counts, peaks, strict=True)
    ]
    return Report(
        {"peaks": rows},
        [
            Target(
                "peak memory over that of the first hundred rows",
                peaks[-1] / peaks[0],
                at_most=GROWTH,
            )
        ],
    )


def _table(folder: str, rows: int) -> Any:
    return scene_table(Path(folder), rows, distinct=DISTINCT, shard_rows=SHARD_ROWS)


def _peaks(settings: Any, counts: tuple[int, ...]) -> list[int]:
    """Bytes of the peak when so many rows were done."""
    torch.set_num_threads(THREADS)
    segmenter = default_model()
    peaks, done = [], 0
    for receipt in work_through(plan_of(settings, segmenter), settings, segmenter):
        done += receipt.rows
        if len(peaks) < len(counts) and done >= counts[len(peaks)]:
            peaks.append(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                * (1 if sys.platform == "darwin" else 1024)
            )
    return peaks


if __name__ == "__main__":
    main("memory", run, threads=THREADS)
