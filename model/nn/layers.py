"""Layers that both the image encoder and the decoder are built from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5  # of every LayerNorm in the model


def gelu_tanh(x: Tensor) -> Tensor:
    """Apply GELU in its tanh form, elementwise.

    The tanh form equals x * sigmoid(2 z). On a CPU these passes take little more than half the
    time of PyTorch's own function. Formula in docs/model.md, Vision encoder.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        return F.gelu(x, approximate="tanh")
    scale = 2 * math.sqrt(2 / math.pi)
    gate = torch.addcmul(x.new_full((), scale), x, x, value=scale * 0.044715)
    return gate.mul_(x).sigmoid_().mul_(x)


class Mlp(nn.Module):
    """Linear, tanh-GELU, linear: (..., dim) to (..., out)."""

    def __init__(self, dim: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_tanh(self.fc1(x)))
