"""Keys and values of what was read so far: one static block per layer, written at each row's own
position; and those of images, which all rows that ask about an image share.

Shapes: L layers, B rows, T new positions of each, H heads, S slots, d head width, I images, G
places for rows at an image, P slots of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wordmask.model.runtime.devices import to_device


@dataclass(frozen=True)
class KVCache:
    """`k` and `v` are (L, B, H, S, d). A slot is a position of the row's sequence."""

    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        rows: int,
        heads: int,
        slots: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> KVCache:
        shape = (layers, rows, heads, slots, head_dim)
        return cls(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=dtype),
        )

    def places(self, positions_BT: Tensor) -> Tensor:
        """Where the keys of these positions stand in a layer's block, as flat indices (B * H * T),
        the same for every layer.
        """
        _, rows, heads, slots, _ = self.k.shape
        first_BH = torch.arange(rows * heads, device=self.k.device).view(rows, heads) * slots
        return (first_BH[:, :, None] + positions_BT[:, None]).flatten()

    def extend(
        self, layer: int, places: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, slots: int
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values at `places`, in place; the layer's first `slots` keys and values,
        each (B, H, slots, d).
        """
        for block, new in ((self.k[layer], k_BHTd), (self.v[layer], v_BHTd)):
            block.view(-1, block.shape[-1]).index_copy_(0, places, new.flatten(0, 2))
        return self.k[layer, :, :, :slots], self.v[layer, :, :, :slots]

    def adopt(self, rows_B: Tensor | slice, other: KVCache) -> None:
        """Let rows begin as copies of another cache's rows; the slots that the other does not have
        stay as they are.
        """
        known = other.k.shape[3]
        self.k[:, rows_B, :, :known] = other.k
        self.v[:, rows_B, :, :known] = other.v

    def grown(self, rows: int) -> KVCache:
        """An empty cache like this one, with so many rows."""
        layers, _, *rest = self.k.shape
        return KVCache(self.k.new_zeros(layers, rows, *rest), self.v.new_zeros(layers, rows, *rest))

    def span(self, start: int, stop: int) -> KVCache:
        """Rows start..stop, as a view."""
        return KVCache(self.k[:, start:stop], self.v[:, start:stop])

    def rows(self, rows_B: Tensor) -> KVCache:
        """The given rows only."""
        return KVCache(self.k[:, rows_B], self.v[:, rows_B])


@dataclass(frozen=True)
class SharedPrefix:
    """Images that rows go on from, each held once: `images` (L, I, H, P, d). Rows about the same
    image are brought to its places, so that their queries meet its keys in one product: `row_at` (I
    * G) is the row at each place, `place_of` (B) each row's place.
    """

    images: KVCache
    row_at: Tensor
    place_of: Tensor

    @classmethod
    def of(
        cls, images: KVCache, image_of: Sequence[int | None], device: torch.device
    ) -> SharedPrefix:
        """`image_of[b]` is the image that row b goes on from; None if the row is not in use. The
        number of places at an image is a power of two: few shapes occur."""
        at: list[list[int]] = [[] for _ in range(images.k.shape[1])]
        for row, image in enumerate(image_of):
            if image is not None:
                at[image].append(row)
        most = power_of_two(max(map(len, at)))
        place_of = [0] * len(image_of)
        for image, rows in enumerate(at):
            for place, row in enumerate(rows):
                place_of[row] = image * most + place
        row_at = [row for rows in at for row in [*rows, *[0] * (most - len(rows))]]
        return cls(images, to_device(device, row_at), to_device(device, place_of))

    @property
    def length(self) -> int:
        return self.images.k.shape[3]

    def scores(self, layer: int, q_BHTd: Tensor) -> Tensor:
        """Products of queries with the keys of each row's image, (B, H, T, P)."""
        return self._leave(
            self._meet(q_BHTd) @ self.images.k[layer].transpose(2, 3), q_BHTd.shape[2]
        )

    def mix(self, layer: int, weights_BHTP: Tensor) -> Tensor:
        """Values of each row's image, weighted and added up, (B, H, T, d)."""
        return self._leave(self._meet(weights_BHTP) @ self.images.v[layer], weights_BHTP.shape[2])

    def _meet(self, x_BHTc: Tensor) -> Tensor:
        """Rows to their places: (I, H, G * T, c)."""
        _, heads, steps, width = x_BHTc.shape
        images = self.images.k.shape[1]
        return (
            x_BHTc[self.row_at]
            .view(images, -1, heads, steps, width)
            .transpose(1, 2)
            .reshape(images, heads, -1, width)
        )

    def _leave(self, x_IHNc: Tensor, steps: int) -> Tensor:
        """Back to rows: (B, H, T, c)."""
        _, heads, _, width = x_IHNc.shape
        return (
            x_IHNc.unflatten(2, (-1, steps))
            .transpose(1, 2)
            .reshape(-1, heads, steps, width)[self.place_of]
        )


def power_of_two(count: int) -> int:
    """The next one, so that few shapes occur."""
    return 1 << (max(count, 1) - 1).bit_length()
