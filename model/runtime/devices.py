"""Transfers between host and device that make neither wait, and what a CPU needs to be fast."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A CPU's matrix product takes rows in blocks, and rounds the rows of a block that is not full
# otherwise (measured: of 4 rows with AVX2; with AVX-512 products of up to 15 rows are other ones).
# Few rows are therefore filled up to whole blocks: their last digits do not depend on how many
# there are then.
ROW_BLOCK = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8  # of glibc's mallopt


def resolve_device(device: str | None) -> str:
    """Return the device to use: the named one, or a GPU if there is one, else the CPU.

    Raises:
        ValueError: a GPU is named, and PyTorch sees none.
    """
    if not device:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device = {device!r}: PyTorch sees no CUDA device here; use cpu, or install a CUDA"
            " build of PyTorch"
        )
    return device


def set_up_process(device: str | None, *, deterministic: bool = False) -> None:
    """Prepare this process for a model on a device, before the model is loaded.

    On a CPU the C library keeps freed memory, and for deterministic answers PyTorch's threads are
    reduced to a power of two. A GPU needs nothing.
    """
    if device != "cpu" and torch.cuda.is_available():
        return
    keep_freed_memory()
    if deterministic:
        torch.set_num_threads(_power_of_two_threads())


def check_deterministic_threads() -> None:
    """Check that PyTorch's threads do not make a row's last digits depend on its place.

    With other numbers than powers of two, PyTorch splits tensors among threads within a vector, and
    rounds what is left over otherwise.

    Raises:
        ValueError: their number is not a power of two.
    """
    threads = torch.get_num_threads()
    if threads != _power_of_two_threads():
        raise ValueError(
            f"deterministic = True: PyTorch has {threads} threads on a CPU, and must have a power"
            " of two; call wordmask.model.runtime.devices.set_up_process first"
        )


def _power_of_two_threads() -> int:
    return 1 << (torch.get_num_threads().bit_length() - 1)


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that were freed, in this whole process.

    It would return them to the system, and have every page of the next one faulted in again: a GELU
    over 40 MB took 11 ms instead of 48. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(ARENA_MAX, 1)
    mallopt(MMAP_THRESHOLD, 2**30)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)


def whole_blocks(rows: int, device: torch.device) -> int:
    """Return the next number of rows that fills whole blocks on a CPU; elsewhere the same one."""
    if device.type != "cpu":
        return rows
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


def to_device(device: torch.device, numbers: Sequence[Any]) -> Tensor:
    """Return numbers, or rows of numbers, as a tensor on the device, without waiting for it."""
    host = torch.tensor(numbers)
    if device.type == "cuda" and torch.cuda.is_available():
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


class AsyncHostCopy:
    """A copy of a tensor on its way to the host.

    Reading it waits for the copy, but not for what the device began after it.
    """

    def __init__(self, x: Tensor) -> None:
        self._host = x.to("cpu", non_blocking=True, copy=True)  # into pinned memory, from a GPU
        self._arrived = None if x.device.type == "cpu" else torch.Event(x.device)
        if self._arrived is not None:
            self._arrived.record()

    def numpy(self) -> np.ndarray:
        """Return the copy as an array of the tensor's shape."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()

    def tolist(self) -> list[Any]:
        """Return the copy as nested lists of numbers."""
        return self.numpy().tolist()
