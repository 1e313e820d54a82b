"""One run at a time on an output: a small object there says who is at work, and is renewed while
they are.

Two runs at once would do no harm (equal shards write equal bytes) but the work twice. Stores
without conditional writes are served too: who has written the object and still finds it their own a
moment later holds it.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from uuid import uuid4

from pydantic import ValidationError

from wordmask.schemas.runs import Lease
from wordmask.tasks.output.catalog import new_run_id
from wordmask.tasks.storage import STORE_ERRORS, Store
from wordmask.tasks.telemetry.logs import logger

LEASE_PATH = "lease.json"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without a renewal, by the clocks of both
SETTLES_IN = 0.5  # seconds until a write of another is surely seen
ASKED_EVERY = 2.0  # seconds, while waiting


class OutputInUseError(RuntimeError):
    """Another run is at work on the output. The message says who, where and since when."""


class LeaseLostError(RuntimeError):
    """Another run took the output from this one, which gave no sign of life. The message says who
    and since when.
    """


class LeaseHandle:
    """What a run has of an output while nobody takes it away. `lost`: somebody did, if only for a
    while.
    """

    def __init__(self, output: Store, lease: Lease) -> None:
        self._output, self._lease = output, lease
        self.lost = False

    @property
    def run_id(self) -> str:
        return self._lease.run_id

    def require(self) -> None:
        """Raises LeaseLostError if the output was taken away: what this run has planned may be
        old.
        """
        other = read_lease(self._output)
        if not self.lost and other is not None and other.token == self._lease.token:
            return
        by = (
            f"to {_who(other)}, since {other.since}"
            if other is not None
            else f"to one that has ended, or removed {LEASE_PATH}"
        )
        raise LeaseLostError(
            f"output {self._output.root}: run {self.run_id} lost it {by}, after it gave no sign of"
            f" life for {STALE_AFTER:.0f} s or longer. Nothing was published; what is done has its"
            " receipts, and the same command goes on from there"
        )

    def renew(self) -> None:
        """Give a sign of life, unless it was taken away."""
        self.lost = self.lost or not _is_mine(self._output, self._lease)
        if not self.lost:
            _write(self._output, self._lease)


@contextmanager
def acquire_lease(
    output: Store, run_id: str | None = None, *, wait: bool = False
) -> Iterator[LeaseHandle]:
    """Within, this run is the only one on the output, unless the machine stands still for so long
    that another takes it for dead: what is given tells. Unless one is told it has a new `run_id`,
    made when no other run is left: ids are in the order in which runs publish.

    Raises:
        OutputInUseError: another one is, and `wait` is false.
    """
    mine = _take(output, run_id, wait)
    hold, done = LeaseHandle(output, mine), threading.Event()
    keeper = threading.Thread(target=_keep, args=(hold, done), name="lease", daemon=True)
    keeper.start()
    try:
        yield hold
    finally:
        done.set()
        keeper.join()
        with suppress(*STORE_ERRORS):  # what cannot be removed grows stale
            if _is_mine(output, mine):
                output.fs.rm_file(output.full(LEASE_PATH))


def _take(output: Store, run_id: str | None, wait: bool) -> Lease:
    while True:
        other = read_lease(output)
        if other is None or _is_over(output, other):
            now, token = _now(), uuid4().hex
            mine = Lease(
                token=token,
                run_id=run_id or new_run_id(),
                host=platform.node(),
                pid=os.getpid(),
                since=now,
                renewed=now,
            )
            _write(output, mine)
            time.sleep(SETTLES_IN)
            if _is_mine(output, mine):
                return mine
        elif wait:
            time.sleep(ASKED_EVERY)
        else:
            raise OutputInUseError(
                f"output {output.root}: {_who(other)} is at work on it since {other.since}, and"
                f" gave a sign of life at {other.renewed} ({LEASE_PATH} there says so, and counts"
                f" for nothing {STALE_AFTER:.0f} s after the last one). Give --wait to start when"
                " it has ended, or another output"
            )


def read_lease(output: Store) -> Lease | None:
    """Who holds an output, if anybody does."""
    try:
        return Lease.model_validate_json(output.read_bytes(LEASE_PATH))
    except (FileNotFoundError, ValidationError):
        return None


def _is_over(output: Store, other: Lease) -> bool:
    """Whether the holder is gone: it is a process of this machine that has ended, or it was not
    renewed for long. That a process of its number runs says little, as after a restart another one
    may. The clocks of two machines may disagree, so that a lease that looks old is watched before
    it is taken for dead."""
    if other.host == platform.node() and not _is_running(other.pid):
        return True
    if (datetime.now(UTC) - datetime.fromisoformat(other.renewed)).total_seconds() < STALE_AFTER:
        return False
    time.sleep(1.5 * RENEWED_EVERY)
    return read_lease(output) == other


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _keep(hold: LeaseHandle, done: threading.Event) -> None:
    while not done.wait(RENEWED_EVERY):
        try:
            hold.renew()
        except Exception as error:  # whatever it is, the next renewal may pass
            logger.warning(
                "lease not renewed", extra={"reason": f"{type(error).__name__}: {error}"}
            )


def _write(output: Store, lease: Lease) -> None:
    output.write_bytes(
        LEASE_PATH, lease.model_copy(update={"renewed": _now()}).model_dump_json(indent=1).encode()
    )


def _who(lease: Lease) -> str:
    return f"run {lease.run_id} (process {lease.pid} on {lease.host})"


def _is_mine(output: Store, mine: Lease) -> bool:
    found = read_lease(output)
    return found is not None and found.token == mine.token


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
