"""Rotary position embedding, split-half (NeoX) convention, on the first `rotary_dim` of each head's
dims.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions_BT: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (B, 1, T, rotary_dim / 2) float32, for integer positions."""
    half = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions_BT.device)
    frequency = theta ** -(half / rotary_dim)
    angle = positions_BT.float()[:, None, :, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BHTd: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the leading dims of each head; the rest pass through. Computed in float32, returned in
    x's dtype.
    """
    cos, sin = table
    half = cos.shape[-1]
    first, second, rest = x_BHTd.float().split([half, half, x_BHTd.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1).to(
        x_BHTd.dtype
    )
