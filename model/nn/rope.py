"""Rotary position embedding on the leading dims of each head, in the split-half convention.

Split-half (NeoX): dim i of the first half is rotated with dim i of the second half. Formula in
docs/model.md, Text decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions_BT: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of integer positions, each (B, 1, T, rotary_dim / 2) float32."""
    even_dims = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions_BT.device)
    frequency = theta ** -(even_dims / rotary_dim)
    angle = positions_BT.float()[:, None, :, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BHTd: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the leading dims of each head; the rest pass through.

    It is computed in float32 and returned in the dtype of the input.
    """
    cos, sin = table
    half = cos.shape[-1]
    unrotated = x_BHTd.shape[-1] - 2 * half
    first, second, rest = x_BHTd.float().split([half, half, unrotated], dim=-1)
    rotated_first = first * cos - second * sin
    rotated_second = first * sin + second * cos
    return torch.cat([rotated_first, rotated_second, rest], dim=-1).to(x_BHTd.dtype)
