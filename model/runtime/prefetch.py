"""Work that threads do a little ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def buffered_map(
    pool: ThreadPoolExecutor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
    weight: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Result]:
    """Start work on items at once, and return its results in the order of the items.

    So many items are in work or not yet used that their weights add up to `depth` at most, but
    always one. What the work raises is raised when its result is asked for.
    """
    buffer = _Buffer(pool, work, iter(items), depth, weight)
    buffer.fill()
    return buffer.results()


class _Buffer(Generic[Item, Result]):
    """Items in work, with their weights."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        work: Callable[[Item], Result],
        source: Iterator[Item],
        depth: int,
        weight: Callable[[Item], int],
    ) -> None:
        self._pool = pool
        self._work = work
        self._source = source
        self._depth = depth
        self._weight = weight
        self._started: deque[tuple[int, Future[Result]]] = deque()
        self._total_weight = 0
        self._next: Item | None = None  # taken from the source, and too heavy for now

    def fill(self) -> None:
        """Start work on further items, as far as their weights allow."""
        while self._total_weight < self._depth or not self._started:
            item = self._take()
            if item is None:
                return
            weight = self._weight(item)
            if self._started and self._total_weight + weight > self._depth:
                self._next = item
                return
            self._started.append((weight, self._pool.submit(self._work, item)))
            self._total_weight += weight

    def _take(self) -> Item | None:
        """Return the next item, None if there is none."""
        item = self._next
        self._next = None
        if item is not None:
            return item
        return next(self._source, None)

    def results(self) -> Iterator[Result]:
        """Yield the results in order, and refill the buffer after each."""
        while self._started:
            weight, future = self._started.popleft()
            self._total_weight -= weight
            yield future.result()
            self.fill()
