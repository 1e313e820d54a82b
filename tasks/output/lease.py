"""The lease of an output: one run at a time works on it.

A small object in the output names the run at work, and is renewed while it works. Two runs at once
would do no harm, as equal shards write equal bytes, but they would do the work twice. Stores
without conditional writes are served too: a run has the lease if it wrote the object and still
finds its own there a moment later.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from uuid import uuid4

from pydantic import ValidationError

from wordmask.schemas.runs import Lease
from wordmask.tasks.output.catalog import LEASE_PATH, new_run_id
from wordmask.tasks.storage import STORE_ERRORS, Store
from wordmask.tasks.telemetry.logs import logger

RENEW_SECONDS = 10.0  # between two renewals
STALE_SECONDS = 60.0  # without a renewal, by the clocks of both
SETTLE_SECONDS = 0.5  # until a write of another run is surely seen
POLL_SECONDS = 2.0  # between two looks, while waiting


class OutputInUseError(RuntimeError):
    """Another run works on the output. The message says which, where and since when."""


class LeaseLostError(RuntimeError):
    """Another run took over the output, as this one seemed dead. The message says which."""


class LeaseHandle:
    """The lease of a running run. `lost`: another run took it over, if only for a while."""

    def __init__(self, output: Store, lease: Lease) -> None:
        self._output = output
        self._lease = lease
        self.lost = False

    @property
    def run_id(self) -> str:
        """The run that has the lease."""
        return self._lease.run_id

    def require(self) -> None:
        """Check that the lease was never lost.

        Raises:
            LeaseLostError: it was, so that the plan of this run may be out of date.
        """
        found = read_lease(self._output)
        if not self.lost and found is not None and found.token == self._lease.token:
            return
        if found is None:
            taker = f"to one that has ended, or removed {LEASE_PATH}"
        else:
            taker = f"to {_describe(found)}, since {found.since}"
        raise LeaseLostError(
            f"output {self._output.root}: run {self.run_id} lost it {taker}, after it gave no sign"
            f" of life for {STALE_SECONDS:.0f} s or longer. Nothing was published; what is done has"
            " its receipts, and the same command goes on from there"
        )

    def renew(self) -> None:
        """Write the lease again with the present time, unless another run took it over."""
        self.lost = self.lost or not _is_ours(self._output, self._lease)
        if not self.lost:
            _write(self._output, self._lease)


@contextmanager
def acquire_lease(
    output: Store, run_id: str | None = None, *, wait: bool = False
) -> Generator[LeaseHandle, None, None]:
    """Acquire the lease of an output, renew it in the background, and release it at the end.

    It can be lost all the same: a machine that stands still for long is taken for dead. The handle
    says so.

    Args:
        output: the output.
        run_id: the run that wants the lease. By default a new id, made when no other run is left:
            ids are in the order in which runs publish.
        wait: wait for another run to end.

    Raises:
        OutputInUseError: another run has the lease, and `wait` is false.
    """
    lease = _acquire(output, run_id, wait)
    handle = LeaseHandle(output, lease)
    ended = threading.Event()
    renewer = threading.Thread(target=_renew_until, args=(ended, handle), name="lease", daemon=True)
    renewer.start()
    try:
        yield handle
    finally:
        ended.set()
        renewer.join()
        _release(output, lease)


def read_lease(output: Store) -> Lease | None:
    """Return the lease of an output, or None where no run has it."""
    try:
        return Lease.model_validate_json(output.read_bytes(LEASE_PATH))
    except (FileNotFoundError, ValidationError):
        return None


def _acquire(output: Store, run_id: str | None, wait: bool) -> Lease:
    while True:
        other = read_lease(output)
        if other is None or _is_over(output, other):
            lease = _new_lease(run_id or new_run_id())
            _write(output, lease)
            time.sleep(SETTLE_SECONDS)
            if _is_ours(output, lease):
                return lease
        elif wait:
            time.sleep(POLL_SECONDS)
        else:
            raise OutputInUseError(
                f"output {output.root}: {_describe(other)} is at work on it since {other.since},"
                f" and gave a sign of life at {other.renewed} ({LEASE_PATH} there says so, and"
                f" counts for nothing {STALE_SECONDS:.0f} s after the last one). Give --wait to"
                " start when it has ended, or another output"
            )


def _new_lease(run_id: str) -> Lease:
    now = _now()
    return Lease(
        token=uuid4().hex,
        run_id=run_id,
        host=platform.node(),
        pid=os.getpid(),
        since=now,
        renewed=now,
    )


def _release(output: Store, lease: Lease) -> None:
    with suppress(*STORE_ERRORS):  # a lease that cannot be removed grows stale
        if _is_ours(output, lease):
            output.fs.rm_file(output.full(LEASE_PATH))


def _is_over(output: Store, other: Lease) -> bool:
    """Return whether the run that has the lease is gone.

    It is if it was a process of this machine that has ended, or if it did not renew the lease for
    long. A running process of the same number says little: after a restart it may be another one.
    The clocks of two machines may disagree, so that a lease that looks old is watched for a while
    before it is taken over.
    """
    if other.host == platform.node() and not _is_running(other.pid):
        return True
    age = datetime.now(UTC) - datetime.fromisoformat(other.renewed)
    if age.total_seconds() < STALE_SECONDS:
        return False
    time.sleep(1.5 * RENEW_SECONDS)
    return read_lease(output) == other


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _renew_until(ended: threading.Event, handle: LeaseHandle) -> None:
    while not ended.wait(RENEW_SECONDS):
        try:
            handle.renew()
        except Exception as error:  # whatever it is, the next renewal may pass
            reason = f"{type(error).__name__}: {error}"
            logger.warning("lease not renewed", extra={"reason": reason})


def _write(output: Store, lease: Lease) -> None:
    renewed = lease.model_copy(update={"renewed": _now()})
    output.write_bytes(LEASE_PATH, renewed.model_dump_json(indent=1).encode())


def _is_ours(output: Store, lease: Lease) -> bool:
    found = read_lease(output)
    return found is not None and found.token == lease.token


def _describe(lease: Lease) -> str:
    return f"run {lease.run_id} (process {lease.pid} on {lease.host})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
