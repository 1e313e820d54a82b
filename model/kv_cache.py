"""Keys and values of what was read so far: one static block per layer, written at each row's own position.

Shapes: L layers, B rows, H heads, S slots, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def places(self, positions_BT: Tensor) -> Tensor:
        """Where the keys of these positions stand in a layer's block, as flat indices (B * H * T), the same for every layer."""
        _, rows, heads, slots, _ = self.k.shape
        first_BH = torch.arange(rows * heads, device=self.k.device).view(rows, heads) * slots
        return (first_BH[:, :, None] + positions_BT[:, None]).flatten()

    def extend(self, layer: int, places: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Store keys and values at `places`, in place; the layer's first `slots` keys and values, each (B, H, slots, d)."""
        for block, new in ((self.k[layer], k_BHTd), (self.v[layer], v_BHTd)):
            block.view(-1, block.shape[-1]).index_copy_(0, places, new.flatten(0, 2))
        return self.k[layer, :, :, :slots], self.v[layer, :, :, :slots]

    def adopt(self, rows_B: Tensor, other: KVCache) -> None:
        """Let rows begin as copies of another cache's rows; the slots that the other does not have stay as they are."""
        known = other.k.shape[3]
        self.k[:, rows_B, :, :known] = other.k
        self.v[:, rows_B, :, :known] = other.v

    @classmethod
    def joined(cls, caches: Sequence[KVCache], slots: int) -> KVCache:
        """A new cache of `slots` slots whose rows begin as copies of caches of one row each."""
        n_layers, _, heads, known, head_dim = caches[0].k.shape
        shape = (n_layers, len(caches), heads, slots, head_dim)
        new = cls(caches[0].k.new_zeros(shape), caches[0].v.new_zeros(shape))
        for row, one in enumerate(caches):
            new.k[:, row, :, :known] = one.k[:, 0]
            new.v[:, row, :, :known] = one.v[:, 0]
        return new

    def span(self, start: int, stop: int) -> KVCache:
        """Rows start..stop, as a view."""
        return KVCache(self.k[:, start:stop], self.v[:, start:stop])

    def rows(self, rows_B: Tensor) -> KVCache:
        """The given rows only."""
        return KVCache(self.k[:, rows_B], self.v[:, rows_B])
