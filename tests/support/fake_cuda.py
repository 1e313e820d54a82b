"""CUDA without a GPU, by fake tensors.

Fake tensors know their device, raise on mixing devices, and have no data to read back, so a hidden
wait for the device is an error too.

In bfloat16 only: PyTorch's shape rule for grouped products knows no other dtype (its CUDA kernels
do).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CUDA = torch.device("cuda", 0)


def route_indexing_through_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Python's own indexing and copying, which take a device guard.

    A build of PyTorch for the CPU has none for CUDA.
    """
    monkeypatch.setattr(Tensor, "__getitem__", get_item)
    monkeypatch.setattr(Tensor, "__setitem__", set_item)
    monkeypatch.setattr(Tensor, "contiguous", copied)
    monkeypatch.setattr(Tensor, "__invert__", lambda x: torch.ops.aten.bitwise_not(x))


def put_on_fake_cuda(model: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter of a model on the meta device by a fake one on CUDA."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = FakeTensor(mode, parameter, CUDA)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)


def apply_key(x: Tensor, key: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Apply the basic part of a key by operators; return the index tensors left, by dimension."""
    dim = 0
    indices: list[Tensor | None] = []
    parts = key if isinstance(key, tuple) else (key,)
    for number, part in enumerate(parts):
        if part is Ellipsis:
            dim = x.ndim - sum(other is not None for other in parts[number + 1 :])
            indices = [None] * dim
            continue
        if isinstance(part, int):
            x = torch.ops.aten.select(x, dim, part)
            continue
        if isinstance(part, slice):
            assert part.step in (None, 1), key
            x = torch.ops.aten.slice(x, dim, part.start, part.stop)
        elif part is None:
            x = torch.ops.aten.unsqueeze(x, dim)
        else:
            assert isinstance(part, Tensor), key
        dim += 1
        indices.append(part if isinstance(part, Tensor) else None)
    return x, indices


def get_item(x: Tensor, key: Any) -> Tensor:
    x, indices = apply_key(x, key)
    if all(index is None for index in indices):
        return x
    found: Tensor = torch.ops.aten.index(x, indices)
    return found


def set_item(x: Tensor, key: Any, value: Any) -> None:
    x, indices = apply_key(x, key)
    if all(index is None for index in indices):
        torch.ops.aten.copy_(x, value)
    else:
        torch.ops.aten.index_put_(x, indices, value)


def copied(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    copy: Tensor = torch.ops.aten.clone(x, memory_format=memory_format)
    return copy
