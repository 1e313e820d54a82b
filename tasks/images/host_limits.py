"""How many requests of this process a host gets at a time."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Self


class HostLimits:
    """Counts the requests that are under way to each host, for all threads of a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way: Counter[str] = Counter()

    def slot(self, limit: int) -> HostSlot:
        """Return a place for one request at a time, at hosts that get `limit` at most."""
        return HostSlot(self, limit)

    def take(self, host: str, limit: int, timeout: float | None) -> None:
        """Wait until fewer than `limit` requests are under way, and count one more.

        Raises:
            TimeoutError: it took longer than `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._under_way[host] < limit, timeout):
                raise TimeoutError
            self._under_way[host] += 1

    def give_back(self, host: str) -> None:
        """Count one request less."""
        with self._changed:
            self._under_way[host] -= 1
            if not self._under_way[host]:
                del self._under_way[host]
            self._changed.notify_all()


class HostSlot:
    """The place of one request, which redirects take from host to host."""

    def __init__(self, limits: HostLimits, limit: int) -> None:
        self._limits = limits
        self._limit = limit
        self._host: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def move_to(self, host: str, timeout: float | None = None) -> None:
        """Leave the present host and wait for a place at another. Raises TimeoutError."""
        host = host.lower()
        if host == self._host:
            return
        self._leave()
        self._limits.take(host, self._limit, timeout)
        self._host = host

    def _leave(self) -> None:
        if self._host is not None:
            self._limits.give_back(self._host)
            self._host = None
