"""Several processes that train together, started by `torchrun`: each draws its own batches."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def join_processes(device: str) -> torch.device:
    """Join the other processes, if `torchrun` started this one as one of several.

    Returns:
        The device of this process: of several GPUs its own.
    """
    if not dist.is_torchelastic_launched():
        return torch.device(device)
    if device != "cuda":
        dist.init_process_group()
        return torch.device(device)
    own = torch.device(device, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(device_id=own)
    return own


def process_rank() -> int:
    """Return the number of this process among those that train together; 0 if it trains alone."""
    if not dist.is_initialized():
        return 0
    return dist.get_rank()


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their means over the processes that train together, in one exchange.

    A process that trains alone keeps its own.
    """
    if not dist.is_initialized():
        return
    trainable = [p for p in parameters if p.requires_grad]
    gradients = [_gradient(p) for p in trainable]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat_mean = flat / dist.get_world_size()
    means = flat_mean.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def _gradient(parameter: Tensor) -> Tensor:
    """Return the gradient; zeros for an expert that no token of this process was routed to."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
