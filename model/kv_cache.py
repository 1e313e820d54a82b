"""Keys and values of what was read so far: one static block per layer, written at each row's own position.

Shapes: L layers, B rows, H heads, S slots, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """`k` and `v` are (L, B, H, S, d). A slot is a position of the row's sequence."""

    k: Tensor
    v: Tensor

    @classmethod
    def empty(cls, *, layers: int, rows: int, heads: int, slots: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        shape = (layers, rows, heads, slots, head_dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def write(self, layer: int, positions_BT: Tensor, k_BHTd: Tensor, v_BHTd: Tensor) -> None:
        """Store keys and values at each row's positions, in place."""
        rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        # Indexing (rows, :, positions) puts the indexed dims first: (B, T, H, d).
        self.k[layer].transpose(1, 2)[rows, positions_BT] = k_BHTd.transpose(1, 2)
        self.v[layer].transpose(1, 2)[rows, positions_BT] = v_BHTd.transpose(1, 2)

    def branch(self, source_rows_B: Tensor, slots: int) -> KVCache:
        """A new cache of `slots` slots whose rows begin as copies of the given rows of this one."""
        n_layers, _, heads, known, head_dim = self.k.shape
        shape = (n_layers, len(source_rows_B), heads, slots, head_dim)
        new = KVCache(self.k.new_zeros(shape), self.v.new_zeros(shape))
        new.k[:, :, :, :known] = self.k[:, source_rows_B]
        new.v[:, :, :, :known] = self.v[:, source_rows_B]
        return new

    def rows(self, rows_B: Tensor) -> KVCache:
        """The given rows only."""
        return KVCache(self.k[:, rows_B], self.v[:, rows_B])
