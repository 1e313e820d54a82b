"""The budget of a run: one deadline for all that it does."""

from __future__ import annotations

import time


class BudgetSpentError(RuntimeError):
    """There is no time left to begin anything. No fault of what would have begun."""


class Budget:
    """The seconds of a run, from its command's start to its last write.

    They hold planning, the wait for the lease, the start of workers, the shards, the search for
    rows that kill, and verification, for which time is kept back. The last shards are to end within
    them, if they take as long as the longest before them.

    Args:
        seconds: of the run; None is no limit.
        began: when its command began (`time.monotonic`). Default: now.
    """

    def __init__(self, seconds: float | None = None, began: float | None = None) -> None:
        if began is None:
            began = time.monotonic()
        self.seconds = seconds
        self._began = began
        self._kept_back = 0.0
        self._longest = 0.0

    def keep_back(self, seconds: float) -> None:
        """Keep time for what follows the last shard: verification and publication."""
        self._kept_back = seconds

    def record(self, seconds: float) -> None:
        """Note how long a shard took."""
        self._longest = max(self._longest, seconds)

    @property
    def seconds_left(self) -> float | None:
        """The seconds until all of the time has passed; None without a limit."""
        if self.seconds is None:
            return None
        return max(0.0, self._began + self.seconds - time.monotonic())

    @property
    def allows_another(self) -> bool:
        """Whether a further shard would end in time."""
        if self.seconds is None:
            return True
        needed = self._longest + self._kept_back
        return time.monotonic() + needed < self._began + self.seconds

    def require(self) -> None:
        """Check that a further shard would end in time.

        Raises:
            BudgetSpentError: it would not.
        """
        if not self.allows_another:
            raise BudgetSpentError("the budget is spent")
