"""The loop that all training stages share: steps, learning rate, log, progress and checkpoints.

A stage supplies its batches and what a step does with one of them (`Stage`). Several processes may
train together, see `wordmask.model.train.processes`: all of them step, the first one logs and
saves.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from wordmask.model.nn.moondream import MoondreamSegmentation, parameter_count
from wordmask.model.runtime.devices import keep_freed_memory
from wordmask.model.train.config import StageSettings
from wordmask.model.train.log import CsvLog, RunningMeans
from wordmask.model.train.processes import average_gradients, process_rank

CHECKPOINT_FILE = "last.pt"
LOG_FILE = "log.csv"
SETTINGS_FILE = "settings.json"
MAX_GRAD_NORM = 1.0

# Called with the name of a phase, its steps done, its steps in all, and the means of the metrics
# since the last call.
OnProgress = Callable[[str, int, int, Mapping[str, float]], object]

BatchT = TypeVar("BatchT")


def ignore_progress(phase: str, done: int, steps: int, means: Mapping[str, float]) -> None:
    """Do nothing."""


class Stage(ABC, Generic[BatchT]):
    """What one stage of training supplies to the loop.

    `step` counts the steps done, of all phases; `metrics` names what a step may return, in the
    order of the log's columns.
    """

    settings: StageSettings
    model: MoondreamSegmentation
    optimizer: torch.optim.Optimizer
    step: int = 0
    log_every: int = 50
    metrics: ClassVar[Sequence[str]]

    @abstractmethod
    def phases(self) -> Sequence[tuple[str, int]]:
        """Return the names of the phases and their steps, in their order."""

    @abstractmethod
    def batches(self, steps: range) -> Iterable[BatchT]:
        """Return the batches of some steps, all of one phase: functions of seed and step alone."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""

    @abstractmethod
    def train_step(self, batch: BatchT) -> dict[str, float]:
        """Update the weights with a batch; return the metrics of the step."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint must hold besides the step."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a checkpoint, but for the step."""


@dataclass(frozen=True, kw_only=True)
class _Phase:
    """Part of a run: the steps from `start` up to `stop`."""

    name: str
    start: int
    stop: int

    @property
    def steps(self) -> int:
        return self.stop - self.start


def run_stage(stage: Stage[Any], out: Path, on_progress: OnProgress = ignore_progress) -> None:
    """Train from the step at which a stage stands to its last one.

    Log, settings and checkpoints go to the folder `out`.
    """
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, quiet=process_rank() > 0)
    millions = parameter_count(stage.model) / 1e6
    console.print(f"{millions:.2f} M parameters, from step {stage.step}")
    with _open_log(stage, out) as log, progress_bar(console) as bar:
        for phase in _phases(stage):
            if stage.step < phase.stop:
                _run_phase(stage, phase, out, log, bar, on_progress)


def _open_log(stage: Stage[Any], out: Path) -> CsvLog:
    columns = ("step", "phase", "seconds", *stage.metrics)
    if process_rank() > 0:
        return CsvLog(Path(os.devnull), columns, after=0)
    (out / SETTINGS_FILE).write_text(stage.settings.model_dump_json(indent=1) + "\n")
    return CsvLog(out / LOG_FILE, columns, after=stage.step)


def _phases(stage: Stage[Any]) -> Iterable[_Phase]:
    start = 0
    for name, steps in stage.phases():
        yield _Phase(name=name, start=start, stop=start + steps)
        start += steps


def _run_phase(
    stage: Stage[Any],
    phase: _Phase,
    out: Path,
    log: CsvLog,
    bar: Progress,
    on_progress: OnProgress,
) -> None:
    done = stage.step - phase.start
    task = bar.add_task(phase.name, total=phase.steps, completed=done)
    means, began = RunningMeans(), time.perf_counter()
    for batch in stage.batches(range(stage.step, phase.stop)):
        set_learning_rate(stage.optimizer, stage.learning_rate(stage.step))
        means.add(stage.train_step(batch))
        stage.step += 1
        bar.update(task, advance=1)
        if stage.step % stage.log_every == 0:
            seconds = (time.perf_counter() - began) / means.steps
            found = means.take()
            row: dict[str, float | str] = {"step": stage.step, "phase": phase.name}
            row["seconds"] = seconds
            log.write(row | found)
            on_progress(phase.name, stage.step - phase.start, phase.steps, found)
            began = time.perf_counter()
        is_due = stage.step % stage.settings.checkpoint_every == 0 or stage.step == phase.stop
        if is_due and process_rank() == 0:
            save_checkpoint(out / CHECKPOINT_FILE, step=stage.step, **stage.state_dict())


def resume(stage: Stage[Any], out: Path) -> bool:
    """Load the checkpoint in the folder `out` into a stage; return whether there is one.

    Raises:
        ValueError: if it is of another run.
    """
    path = out / CHECKPOINT_FILE
    if not path.exists():
        return False
    saved = torch.load(path, weights_only=True)
    try:
        stage.load_state_dict(saved)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    stage.step = saved["step"]
    return True


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Write a checkpoint.

    The file appears when it is whole: a run that is stopped while it writes resumes from the
    checkpoint before.
    """
    partial = path.with_suffix(".partial")
    torch.save(parts, partial)
    partial.replace(path)


def warmup_cosine(step: int, *, peak: float, steps: int, warmup: int, floor: float) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine.

    The cosine falls from `peak` at step 0 to `floor` times `peak` at step `steps`, and stays there.
    """
    progress = min(step / steps, 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    falling = floor + (1 - floor) * cosine
    return peak * falling * min(1.0, (step + 1) / warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def update_weights(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one optimizer step down the gradient of a loss, clipped to norm `MAX_GRAD_NORM`.

    Returns:
        The norm of the gradient before it was clipped.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimizer.step()
    return norm.item()


class WeightAverage:
    """Running mean of weights by name, over the steps of a run."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.mean = {name: value.clone() for name, value in weights.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """Keep `decay` of the mean and add the rest of the weights; less in the first steps."""
        self.updates += 1
        decay = min(decay, self.updates / (self.updates + 9))
        means = [self.mean[name] for name in weights]
        update_means = get_ema_multi_avg_fn(decay)
        update_means(means, [*weights.values()], None)


def progress_bar(console: Console) -> Progress:
    """Return a bar with the steps done, of how many, and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
