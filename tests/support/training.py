"""Stopping a training stage in the middle, and comparing the weights that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Callable[[], None]:
    """Let a stage end after `step` calls of its `_step`, as by a kill; return what undoes that."""
    real, calls = module._step, 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "_step", dying)
    return lambda: monkeypatch.setattr(module, "_step", real)


def weights(out: Path, part: str) -> dict[str, Tensor]:
    """Return one part of the last checkpoint in a training folder."""
    checkpoint: dict[str, dict[str, Tensor]] = torch.load(out / "last.pt", weights_only=True)
    return checkpoint[part]


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
