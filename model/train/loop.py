"""What the runs of all stages do alike: how the rate falls, how a checkpoint is kept, how progress
is shown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

# Who is told of a run's course: the part of it, steps done of how many, and the means of what was
# measured since last told.
OnProgress = Callable[[str, int, int, Mapping[str, float]], object]


def ignore_progress(part: str, done: int, steps: int, means: Mapping[str, float]) -> None: ...


def warmup_cosine(step: int, *, peak: float, steps: int, warmup: int, floor: float) -> float:
    """Learning rate of a step: linear warm-up, then a cosine from `peak` to `floor` of it after
    `steps`.
    """
    falling = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return peak * falling * min(1.0, (step + 1) / warmup)


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Write a checkpoint; the file appears when it is whole, so that a stopped run finds the one
    before.
    """
    partial = path.with_suffix(".partial")
    torch.save(parts, partial)
    partial.replace(path)


def progress_bar(console: Console) -> Progress:
    """Steps done, of how many, and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def join_processes(device: str) -> torch.device:
    """Join the others, if `torchrun` started this process as one of several; the device that is its
    own, of that type.
    """
    if not dist.is_torchelastic_launched():
        return torch.device(device)
    own = (
        torch.device(device, int(os.environ["LOCAL_RANK"]))
        if device == "cuda"
        else torch.device(device)
    )
    dist.init_process_group(device_id=own if own.type == "cuda" else None)
    return own


def process_rank() -> int:
    """Which of the processes that train together (`torchrun`) this is; 0 where it trains alone. The
    first one logs and saves.
    """
    return dist.get_rank() if dist.is_initialized() else 0


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their means over the processes that train together, in one exchange;
    nothing where one trains alone.
    """
    if not dist.is_initialized():
        return
    learned = [p for p in parameters if p.requires_grad]
    for p in learned:  # an expert that no token of one process was routed to
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in learned])
    dist.all_reduce(flat)
    means = (flat / dist.get_world_size()).split([p.numel() for p in learned])
    for p, mean in zip(learned, means, strict=True):
        p.grad.copy_(mean.view_as(p))
