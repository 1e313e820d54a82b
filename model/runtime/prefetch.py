"""Work done in threads a little ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
    weight: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Result]:
    """Results in the order of the items. Work begins at once, and stays so many items ahead that
    their weights add up to `depth` at most, but always one; what it raises is raised when its
    result is asked for."""
    source = iter(items)
    begun: deque[tuple[int, Future[Result]]] = deque()
    taken: deque[Item] = deque()  # from the source, and too heavy for now: one at most

    def begin() -> None:
        while (held := sum(each for each, _ in begun)) < depth or not begun:
            item = taken.popleft() if taken else next(source, None)
            if item is None:
                return
            if begun and held + weight(item) > depth:
                taken.append(item)
                return
            begun.append((weight(item), pool.submit(work, item)))

    def results() -> Iterator[Result]:
        while begun:
            yield begun.popleft()[1].result()
            begin()

    begin()
    return results()
