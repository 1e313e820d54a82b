"""Work done in threads a little ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """Results in the order of the items. Work begins at once, on `depth` items, and stays so far ahead; what it raises is raised
    when its result is asked for."""
    source = iter(items)
    begun: deque[Future[Result]] = deque()

    def begin() -> None:
        while len(begun) < depth and (item := next(source, None)) is not None:
            begun.append(pool.submit(work, item))

    def results() -> Iterator[Result]:
        while begun:
            yield begun.popleft().result()
            begin()

    begin()
    return results()
