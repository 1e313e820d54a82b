"""Which rows of a shard kill the process that works on them: found by halving, so that their
neighbours are done.
"""

from __future__ import annotations

from collections.abc import Callable


def isolate(rows: int, survives: Callable[[int, int], bool]) -> tuple[int, ...]:
    """Positions of the rows that kill, of a shard of `rows` rows that did not survive as a whole.

    `survives(start, stop)` tries rows start..stop in a process of their own. A row is guilty if it
    kills alone, twice: one death may be the machine's fault. None may be found, where it takes many
    rows together.
    """
    suspects = [(0, rows // 2), (rows // 2, rows)]
    guilty = []
    while suspects:
        start, stop = suspects.pop()
        if start == stop or survives(start, stop):
            continue
        if stop - start > 1:
            middle = (start + stop) // 2
            suspects += [(start, middle), (middle, stop)]
        elif not survives(start, stop):
            guilty.append(start)
    return tuple(sorted(guilty))
