"""What the runs of all stages do alike: how the rate falls, how a checkpoint is kept, how progress is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Who is told of a run's course: the part of it, steps done of how many, and the means of what was measured since last told.
Tell = Callable[[str, int, int, Mapping[str, float]], object]


def tell_nobody(part: str, done: int, steps: int, means: Mapping[str, float]) -> None: ...


def falling_rate(step: int, *, peak: float, steps: int, warmup: int, floor: float) -> float:
    """Learning rate of a step: linear warm-up, then a cosine from `peak` to `floor` of it after `steps`."""
    falling = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return peak * falling * min(1.0, (step + 1) / warmup)


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Write a checkpoint; the file appears when it is whole, so that a stopped run finds the one before."""
    partial = path.with_suffix(".partial")
    torch.save(parts, partial)
    partial.replace(path)


def progress_bar(console: Console) -> Progress:
    """Steps done, of how many, and the time left."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
