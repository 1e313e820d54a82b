"""Keys and values of the positions that were read, per row, and of image prefixes that rows share.

Shapes: L layers, B rows, T new positions of each row, H heads, S positions a row has room for,
d head width; of a shared prefix: E entries (images), P positions of an entry, G rows per entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wordmask.model.runtime.devices import to_device


@dataclass(frozen=True)
class KVCache:
    """Keys `k` and values `v`, each (L, B, H, S, d): one static block, written in place.

    Index s of a row holds the row's position s. S is the cache's `max_len`.
    """

    k: Tensor
    v: Tensor

    @classmethod
    def zeros(
        cls,
        *,
        layers: int,
        rows: int,
        heads: int,
        max_len: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> KVCache:
        """Return a cache of zeros with room for `max_len` positions of each row."""
        shape = (layers, rows, heads, max_len, head_dim)
        k = torch.zeros(shape, device=device, dtype=dtype)
        v = torch.zeros(shape, device=device, dtype=dtype)
        return cls(k, v)

    @property
    def max_len(self) -> int:
        """Positions that a row has room for."""
        return self.k.shape[3]

    def flat_indices(self, positions_BT: Tensor) -> Tensor:
        """Return where positions lie in a layer's block of (B * H * S, d), as (B * H * T) indices.

        They are the same for every layer, so a pass computes them once.
        """
        _, rows, heads, max_len, _ = self.k.shape
        first_BH = torch.arange(rows * heads, device=self.k.device).view(rows, heads) * max_len
        return (first_BH[:, :, None] + positions_BT[:, None]).flatten()

    def extend(
        self, layer: int, flat_indices: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer in place, and return its first `length` positions.

        Args:
            layer: index of the layer.
            flat_indices: where to store them, from `flat_indices`.
            k_BHTd: keys of the new positions.
            v_BHTd: values of the new positions.
            length: how many positions of each row to return.

        Returns:
            Views of the keys and of the values, each (B, H, length, d).
        """
        for block, new in ((self.k[layer], k_BHTd), (self.v[layer], v_BHTd)):
            block.view(-1, block.shape[-1]).index_copy_(0, flat_indices, new.flatten(0, 2))
        k_BHSd = self.k[layer]
        v_BHSd = self.v[layer]
        return k_BHSd[:, :, :length], v_BHSd[:, :, :length]

    def copy_rows(self, rows_B: Tensor | slice, source: KVCache) -> None:
        """Copy all rows of `source` into the rows `rows_B`, in place.

        Positions beyond the source's `max_len` stay as they are.
        """
        self.k[:, rows_B, :, : source.max_len] = source.k
        self.v[:, rows_B, :, : source.max_len] = source.v

    def new_zeros(self, rows: int) -> KVCache:
        """Return a cache of zeros like this one, with `rows` rows."""
        layers, _, *rest = self.k.shape
        shape = (layers, rows, *rest)
        return KVCache(self.k.new_zeros(shape), self.v.new_zeros(shape))

    def slice_rows(self, start: int, stop: int) -> KVCache:
        """Return rows start..stop as a view."""
        return KVCache(self.k[:, start:stop], self.v[:, start:stop])

    def select(self, rows_B: Tensor) -> KVCache:
        """Return a copy with the given rows only, in their order."""
        return KVCache(self.k[:, rows_B], self.v[:, rows_B])


@dataclass(frozen=True)
class SharedPrefix:
    """Image prefixes that rows continue, each stored once: `entries` (L, E, H, P, d).

    Rows with the same entry are grouped, so that their queries meet its keys in one product.
    `grouped_rows` (E * G) is the row at each index of the grouped batch; `grouped_index` (B) is
    the index of each row in it. Groups are filled up with row 0, whose results there are unused.
    """

    entries: KVCache
    grouped_rows: Tensor
    grouped_index: Tensor

    @classmethod
    def build(
        cls, entries: KVCache, entry_of_row: Sequence[int | None], device: torch.device
    ) -> SharedPrefix:
        """Group rows by the entry that each continues.

        Args:
            entries: keys and values of the prefixes, one row for each.
            entry_of_row: index of the entry of each row, None for a row that is not in use.
            device: where the index tensors are put.

        The size of a group is a power of two, so that few shapes occur.
        """
        groups: list[list[int]] = [[] for _ in range(entries.k.shape[1])]
        for row, entry in enumerate(entry_of_row):
            if entry is not None:
                groups[entry].append(row)
        group_size = next_power_of_two(max(map(len, groups)))

        grouped_rows: list[int] = []
        grouped_index = [0] * len(entry_of_row)
        for rows in groups:
            for offset, row in enumerate(rows):
                grouped_index[row] = len(grouped_rows) + offset
            filler = [0] * (group_size - len(rows))
            grouped_rows += rows + filler
        return cls(entries, to_device(device, grouped_rows), to_device(device, grouped_index))

    @property
    def length(self) -> int:
        """Positions of a prefix."""
        return self.entries.max_len

    def scores(self, layer: int, q_BHTd: Tensor) -> Tensor:
        """Return float32 products of queries with the keys of each row's prefix, (B, H, T, P)."""
        k_EHdP = self.entries.k[layer].transpose(2, 3)
        scores_EHNP = float32_product(self._group(q_BHTd), k_EHdP)
        return self._ungroup(scores_EHNP, steps=q_BHTd.shape[2])

    def weighted_values(self, layer: int, weights_BHTP: Tensor) -> Tensor:
        """Return float32 sums of the values of each row's prefix by weight, (B, H, T, d)."""
        v_EHPd = self.entries.v[layer]
        sums_EHNd = float32_product(self._group(weights_BHTP), v_EHPd)
        return self._ungroup(sums_EHNd, steps=weights_BHTP.shape[2])

    def _group(self, x_BHTc: Tensor) -> Tensor:
        """Bring rows to their entries: (E, H, G * T, c)."""
        _, heads, steps, width = x_BHTc.shape
        entries = self.entries.k.shape[1]
        grouped = x_BHTc[self.grouped_rows]
        x_EGHTc = grouped.view(entries, -1, heads, steps, width)
        return x_EGHTc.transpose(1, 2).reshape(entries, heads, -1, width)

    def _ungroup(self, x_EHNc: Tensor, steps: int) -> Tensor:
        """Bring results back to their rows: (B, H, T, c)."""
        _, heads, _, width = x_EHNc.shape
        x_EGHTc = x_EHNc.unflatten(2, (-1, steps)).transpose(1, 2)
        grouped = x_EGHTc.reshape(-1, heads, steps, width)
        return grouped[self.grouped_index]


def float32_product(a_BHmn: Tensor, b_BHno: Tensor) -> Tensor:
    """Return the products of matrices in float32, whatever the dtype that both are in.

    bfloat16 has 8 bits: a score of 40 would be rounded to quarters before its exponential is taken.
    """
    if a_BHmn.dtype == torch.float32:
        return a_BHmn @ b_BHno
    if a_BHmn.device.type != "cuda":
        return a_BHmn.float() @ b_BHno.float()
    # Tensor cores sum in float32 anyway. So neither matrix is copied.
    a_Nmn = a_BHmn.flatten(0, 1)
    b_Nno = b_BHno.flatten(0, 1)
    product_Nmo = torch.bmm(a_Nmn, b_Nno, out_dtype=torch.float32)
    return product_Nmo.unflatten(0, a_BHmn.shape[:2])


def next_power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (max(count, 1) - 1).bit_length()
