"""Work done in threads a little ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """Results in the order of the items, `depth` of which are taken and worked on ahead. What `work` raises is raised here."""
    source = iter(items)
    begun: deque[Future[Result]] = deque()
    while True:
        while len(begun) < depth and (item := next(source, None)) is not None:
            begun.append(pool.submit(work, item))
        if not begun:
            return
        yield begun.popleft().result()
