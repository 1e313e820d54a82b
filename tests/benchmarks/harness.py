"""What the benchmarks share: paired timing, targets, one report for people or as JSON.

    python -m tests.benchmarks.NAME [--quick] [--json]

A missed target is said plainly and is no error: the exit code tells whether the benchmark ran, not
how fast the machine is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console
from rich.table import Table

from wordmask.model.runtime.devices import set_up_process


@dataclass(frozen=True)
class Target:
    """A promise in numbers: `value` must be at least, or at most, a limit.

    Exactly one of the two is given.
    """

    name: str
    value: float
    at_least: float | None = field(default=None, kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"target {self.name!r}: give either at_least or at_most")

    @property
    def met(self) -> bool:
        return bool(
            self.value >= self.at_least if self.at_least is not None else self.value <= self.at_most
        )

    def as_dict(self) -> dict[str, Any]:
        limit, comparison = (
            (self.at_least, ">=") if self.at_least is not None else (self.at_most, "<=")
        )
        return {
            "name": self.name,
            "value": self.value,
            "comparison": comparison,
            "target": limit,
            "met": self.met,
        }


@dataclass(frozen=True)
class Report:
    """`results`: values by name, and lists of rows (dicts with the same keys) by title.

    Plain or numpy numbers, text, booleans.
    """

    results: Mapping[str, Any]
    targets: list[Target]


@dataclass(frozen=True)
class Paired:
    """Seconds of several functions in the same rounds.

    What slows the machine for a while slows all of them.
    """

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Return how many times faster `fast` is than `slow`: the median over rounds."""
        return statistics.median(
            a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)
        )


def paired(functions: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 1) -> Paired:
    """Time functions interleaved, in `repeats` rounds after `warm_up` untimed ones.

    Each round starts one further down the list.
    """
    order = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(-warm_up, repeats):
        start = turn % len(order)
        for name in order[start:] + order[:start]:
            took = timed(functions[name])
            if turn >= 0:
                seconds[name].append(took)
    return Paired(seconds)


def timed(function: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(name: str, run: Callable[[bool], Report], *, threads: int = 1) -> None:
    """Parse the arguments, `run(quick)`, print.

    With --json stdout carries one object and nothing else.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{name}", description=run.__doc__
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats: done in 50 s on 2 cores"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    set_up_process("cpu")
    with contextlib.redirect_stdout(sys.stderr):
        report = run(arguments.quick)
    if arguments.json:
        targets = [target.as_dict() for target in report.targets]
        found = {"name": name, "machine": machine(), "results": report.results, "targets": targets}
        print(json.dumps(found, default=lambda number: number.item()))
    else:
        show(name, report)


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        if cpuinfo.exists()
        else []
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = models[0] if models else platform.processor() or platform.machine()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "cpu": cpu,
        "cores": cores,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date,
    }


def show(name: str, report: Report, console: Console | None = None) -> None:
    console = console or Console()
    console.print(
        f"[bold]{name}[/] on",
        ", ".join(f"{key} {value}" for key, value in machine().items()),
        highlight=False,
    )
    single = [
        {"what": key, "value": value}
        for key, value in report.results.items()
        if not isinstance(value, list)
    ]
    for title, rows in [
        ("", single),
        *((key, value) for key, value in report.results.items() if isinstance(value, list)),
    ]:
        if rows:
            console.print(_table(title, rows))
    verdicts = [
        target.as_dict() | {"met": "yes" if target.met else "NO, MISSED"}
        for target in report.targets
    ]
    if verdicts:
        console.print(_table("targets", verdicts))


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(*map(str, rows[0]), title=title or None, title_justify="left")
    for row in rows:
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    return table
