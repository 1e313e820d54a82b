"""Stopping a training stage in the middle, and comparing the weights that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wordmask.model.train.loop import Stage


def stop_at(
    step: int, monkeypatch: pytest.MonkeyPatch, stage: type[Stage[Any]]
) -> Callable[[], None]:
    """Let runs of a stage end after `step` steps, as by a kill; return what undoes that."""
    real, calls = stage.train_step, 0

    def dying(self: Stage[Any], batch: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(stage, "train_step", dying)
    return lambda: monkeypatch.setattr(stage, "train_step", real)


def weights(out: Path, part: str) -> dict[str, Tensor]:
    """Return one part of the last checkpoint in a training folder."""
    checkpoint: dict[str, dict[str, Tensor]] = torch.load(out / "last.pt", weights_only=True)
    return checkpoint[part]


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
