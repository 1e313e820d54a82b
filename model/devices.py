"""Small tensors to a device and back without making either side wait for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(device: torch.device, numbers: Sequence[Any]) -> Tensor:
    """Numbers, or rows of numbers, as a tensor on the device, without waiting for it."""
    host = torch.tensor(numbers)
    return (host.pin_memory() if device.type == "cuda" and torch.cuda.is_available() else host).to(device, non_blocking=True)


class OnItsWay:
    """A copy of a tensor that is on its way to the host. Reading it waits for it, but not for what was begun after it."""

    def __init__(self, x: Tensor) -> None:
        self._host = x.to("cpu", non_blocking=True, copy=True)  # into pinned memory, from a GPU
        self._arrived = None if x.device.type == "cpu" else torch.Event(x.device)
        if self._arrived is not None:
            self._arrived.record()

    def numpy(self) -> np.ndarray:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()

    def tolist(self) -> list[Any]:
        return self.numpy().tolist()
