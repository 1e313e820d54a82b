"""Keys and values of the images that running rows ask about, each image held once.

An image is prefilled once. It enters the pool with the first of its requests that is admitted, and
leaves it when the last of them is finished.
"""

from __future__ import annotations

from dataclasses import dataclass

from wordmask.model.nn.kv_cache import KVCache, next_power_of_two
from wordmask.model.runtime.devices import to_device


@dataclass(eq=False)
class PrefixEntry:
    """A prefilled image.

    Args:
        cache: its keys and values, until it is in the pool.
        n_unfinished: requests about it that are not finished.
        index: where it is in the pool; -1 while it is not.
    """

    cache: KVCache | None
    n_unfinished: int
    index: int = -1


class PrefixPool:
    """Prefilled images by index. From the first image on there are `min_size` indices at least."""

    def __init__(self, min_size: int = 0) -> None:
        self._min_size = min_size
        self._entries: list[PrefixEntry | None] = []
        self._cache: KVCache | None = None

    @property
    def cache(self) -> KVCache:
        """Return the keys and values of every index up to the last that was ever in use."""
        assert self._cache is not None
        return self._cache.slice_rows(0, len(self._entries))

    def acquire(self, entry: PrefixEntry) -> None:
        """Bring an image into the pool, unless it is there."""
        if entry.cache is None:
            return
        index = self._first_free()
        self._write(index, entry.cache)
        self._entries[index] = entry
        entry.index, entry.cache = index, None

    def release(self, entry: PrefixEntry) -> None:
        """Note that one of the requests about an image is finished; free its index after all."""
        entry.n_unfinished -= 1
        if entry.n_unfinished == 0:
            self._entries[entry.index] = None

    def compact(self) -> None:
        """Move the images together, if they fit into half of the indices."""
        kept = [entry for entry in self._entries if entry is not None]
        if (
            self._cache is None
            or not kept
            or next_power_of_two(len(kept)) > len(self._entries) // 2
        ):
            return
        indices = to_device(self._cache.k.device, [entry.index for entry in kept])
        self._cache = self._cache.select(indices)
        self._entries = list(kept)
        for index, entry in enumerate(kept):
            entry.index = index

    def _first_free(self) -> int:
        for index, entry in enumerate(self._entries):
            if entry is None:
                return index
        return len(self._entries)

    def _write(self, index: int, image: KVCache) -> None:
        size = max(index + 1, self._min_size)
        self._entries += [None] * (size - len(self._entries))
        if self._cache is None or index >= self._cache.k.shape[1]:
            self._cache = self._grown(next_power_of_two(size), image)
        self._cache.copy_rows(slice(index, index + 1), image)

    def _grown(self, size: int, image: KVCache) -> KVCache:
        """Return a larger cache that begins with the present one; `image` has its shape."""
        grown = image.new_zeros(size)
        if self._cache is not None:
            grown.copy_rows(slice(0, self._cache.k.shape[1]), self._cache)
        return grown
