"""The time of `wordmask plan` for an input of very many files, from its start to its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.harness import Report, Target, main

ROWS = 1_000  # of a file
GROUPS = 4  # row groups of a file
SECONDS, MEGABYTES = 60, 500
# The peak since the program was begun, told by itself: what a parent is told of a child has the
# parent's own memory in it.
PLAN = """
import sys
from wordmask.flows.cli.app import main
try:
    main()
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak, file=sys.stderr)
"""


@dataclass(frozen=True)
class Planned:
    found: dict[str, Any]
    seconds: float
    megabytes: float


def run(quick: bool) -> Report:
    """Seconds and peak memory of planning 10,000 files of 1,000 rows on a local disk.

    Both without and with a row_id column.
    """
    files = 1_000 if quick else 10_000
    results: list[dict[str, Any]] = []
    targets = []
    for what, ids in (("footers alone", False), ("with a row_id column", True)):
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder, "in"), files, ids=ids)
            plan = planned(Path(folder, "in"), Path(folder, "out"))
        if plan.found["rows"] != files * ROWS:
            raise RuntimeError(f"{files * ROWS} rows were written, {plan.found['rows']} planned")
        counts = {name: plan.found[name] for name in ("files", "rows", "shards")}
        results.append({"what": what} | counts | {"s": plan.seconds, "peak MB": plan.megabytes})
        targets += [
            Target(f"seconds, {what}", plan.seconds, at_most=SECONDS),
            Target(f"peak MB, {what}", plan.megabytes, at_most=MEGABYTES),
        ]
    return Report({"plan": results}, targets)


def write_files(folder: Path, files: int, *, ids: bool) -> None:
    """Files whose footers are like real ones.

    URIs of images, expressions, references and ids differ from row to row.
    """
    folder.mkdir(parents=True)
    columns = {
        "image": pa.array([f"pictures/{row // 4:06}.jpg" for row in range(ROWS)]),
        "query": pa.array(
            [f"the {'red' if row % 2 else 'blue'} thing on the left" for row in range(ROWS)]
        ),
        "spatial_refs": pa.array([[[0.25, 0.5]]] * ROWS),
        "mode": pa.array(["one"] * ROWS),
    }
    for number in range(files):
        path = folder / f"day={number % 30:02}" / f"part-{number:05}.parquet"
        path.parent.mkdir(exist_ok=True)
        own = (
            {"row_id": pa.array(np.arange(number * ROWS, (number + 1) * ROWS)).cast(pa.string())}
            if ids
            else {}
        )
        pq.write_table(pa.table(own | columns), path, row_group_size=ROWS // GROUPS)


def planned(input: Path, output: Path) -> Planned:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PLAN, "plan", str(input), str(output), "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    return Planned(json.loads(done.stdout), seconds, int(done.stderr.split()[-1]) * 1024 / 1e6)


if __name__ == "__main__":
    main("planning", run)
