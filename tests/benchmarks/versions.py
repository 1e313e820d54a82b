"""Rows a second of this checkout and of another version, in turn.

    python -m tests.benchmarks.versions COMMIT [--rounds N]

Each round starts one process in either version. Both import the same libraries, so that only this
project's code differs. COMMIT needs `tests/benchmarks/models.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
THREADS = 2
REPEATS = 4  # of the default model in one process; the first is untimed
ROWS = 128

Speeds = dict[str, list[float]]


def measure() -> Speeds:
    """Return rows a second of each job, by job, of the version that Python finds first."""
    import torch

    from tests.benchmarks.models import default_model, medium_model, photographs, scenes

    torch.set_num_threads(THREADS)
    small = default_model()
    speeds = {
        f"default model, {queries} queries per image": _speeds(
            small, scenes(ROWS // queries, queries)
        )
        for queries in (1, 8)
    }
    medium = medium_model(new_tokens=24)
    speeds["medium model, 8 queries per image"] = _speeds(medium, photographs(1, 8))
    return speeds


def _speeds(segmenter: Any, work: Any) -> list[float]:
    speeds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _, answer in segmenter.stream(work.asked()):
            answer.result()
        speeds.append(work.rows / (time.perf_counter() - began))
    return speeds[1:]


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check out a version beside this one, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)


def measure_in(tree: Path) -> Speeds:
    """Measure the version of a tree, in a process of its own."""
    environ = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-P", str(HERE), "--measure"]  # -P: not this folder's modules first
    done = subprocess.run(
        command, cwd=tree, env=environ, check=True, stdout=subprocess.PIPE, text=True
    )
    speeds: Speeds = json.loads(done.stdout.splitlines()[-1])
    return speeds


def compare(commit: str, rounds: int) -> None:
    """Print rows a second of both versions, and the ratio of their medians."""
    found: dict[str, dict[str, list[float]]] = {}
    with checkout(commit) as other:
        for turn in range(rounds):
            for name, tree in ((commit, other), ("here", ROOT)):
                for job, speeds in measure_in(tree).items():
                    found.setdefault(job, {}).setdefault(name, []).extend(speeds)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    for job, by_version in found.items():
        before = statistics.median(by_version[commit])
        after = statistics.median(by_version["here"])
        print(f"{job}: {commit} {before:.3g}, here {after:.3g} rows/s, ratio {after / before:.3f}")


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.versions")
    parser.add_argument("commit", nargs="?", help="version to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="processes of either version")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure()))
    elif arguments.commit is None:
        parser.error("name the COMMIT to compare with")
    else:
        compare(arguments.commit, arguments.rounds)


if __name__ == "__main__":
    main()
