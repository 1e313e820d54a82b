"""The lease of an output: one run at a time works on it.

A run writes a claim of its own, lists the claims, and has the lease if there is no other. As each
writes before it looks, of two that begin at once at least one sees the other, however long a write
takes. Where the store can create a file exclusively, the fencing number is the file's name, and a
second claim of one number fails at once. The lease is renewed while the run works.

A process that stood still for long may find that another has claimed the output. For a moment both
believe to have it: fencing numbers in the names of receipts keep the older from doing harm, and
`LeaseHandle.require` from publishing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

from wordmask.tasks.objects import create, creates_exclusively
from wordmask.tasks.output import claims
from wordmask.tasks.output.catalog import lease_path, next_run_id
from wordmask.tasks.output.claims import Claim, Lease, Look, Watch, describe
from wordmask.tasks.storage import STORE_ERRORS, Store
from wordmask.tasks.telemetry.logs import logger

RENEW_SECONDS = 10.0  # between two renewals
POLL_SECONDS = 2.0  # between two looks, while waiting for another run
CONTEND_SECONDS = 0.2  # between two looks, while claims of others may be withdrawn
END_SECONDS = 5.0  # for a renewal under way, when the lease is released


class OutputInUseError(RuntimeError):
    """Another run works on the output. The message says which, where and since when."""


class LeaseLostError(RuntimeError):
    """Another run took over the output, as this one seemed dead. The message says which."""


class LeaseHandle:
    """The lease of a running run."""

    def __init__(self, output: Store, claim: Claim) -> None:
        self._output = output
        self._claim = claim
        self._superseded = False
        self._renewed_at = _clock()  # when the last renewal that was written began

    @property
    def run_id(self) -> str:
        """The run that has the lease."""
        return self._claim.lease.run_id

    @property
    def fence(self) -> int:
        """A number that is greater than that of every earlier lease of the output."""
        return self._claim.lease.fence

    @property
    def lost(self) -> bool:
        """Whether another run took the output over, or may have, as no renewal could be written."""
        return self._superseded or _clock() - self._renewed_at > claims.STALE_SECONDS

    def check(self) -> None:
        """Check that the lease is not known to be lost. The store is not asked.

        Raises:
            LeaseLostError: it is, so that the work is another run's.
        """
        if self.lost:
            raise LeaseLostError(
                f"output {self._output.root}: run {self.run_id} lost it {self._taker()}, after it"
                f" gave no sign of life for {claims.STALE_SECONDS:.0f} s or longer. Nothing was"
                " published; what is done has its receipts, and the same command goes on from there"
            )

    def require(self) -> None:
        """Check that the lease was not lost until now, by a look at the store.

        Raises:
            LeaseLostError: it was, so that the plan of this run may be out of date.
        """
        self._look()
        self.check()

    def renew(self) -> None:
        """Write the lease again with the present time, unless another run took it over."""
        began = _clock()
        self._look()
        if not self._superseded:
            self._write("held", self._claim.lease.renewals + 1)
            self._renewed_at = began

    def release(self) -> None:
        """Write that the run has ended, unless another took it over."""
        self._look()
        if not self._superseded:
            self._write("released", self._claim.lease.renewals)

    def _look(self) -> None:
        taken = self._superseded or claims.is_superseded(self._output, self._claim)
        self._superseded = taken

    def _write(self, state: str, renewals: int) -> None:
        changes = {"state": state, "renewals": renewals}
        lease = self._claim.lease.model_copy(update=changes)
        self._claim = self._claim._replace(lease=lease)
        claims.write_claim(self._output, self._claim)

    def _taker(self) -> str:
        taker = None
        with suppress(*STORE_ERRORS):
            taker = claims.newest_lease(self._output)
        if taker is not None and taker.fence > self.fence:
            return f"to {describe(taker)}, since {taker.since}"
        if self._superseded:
            return f"to one that begins, or {self._claim.path} was removed"
        return "as it could not renew it"


@contextmanager
def acquire_lease(
    output: Store,
    run_id: str | None = None,
    *,
    wait: bool = False,
    patience: float | None = None,
) -> Generator[LeaseHandle, None, None]:
    """Acquire the lease of an output, renew it in the background, and release it at the end.

    It can be lost all the same: a machine that stands still for long is taken for dead. The handle
    says so. Where the holder is neither surely alive nor surely dead, this looks for a sign of life
    for up to `STALE_SECONDS`.

    Args:
        output: the output.
        run_id: the run that wants the lease. By default a new id, made when no other run is left:
            ids are in the order in which runs publish.
        wait: wait for another run to end.
        patience: most seconds of that. None: no limit.

    Raises:
        OutputInUseError: another run has the lease, and `wait` is false or took too long.
    """
    handle = LeaseHandle(output, _acquire(output, run_id, wait, patience))
    ended = threading.Event()
    renewer = threading.Thread(target=_renew_until, args=(ended, handle), name="lease", daemon=True)
    renewer.start()
    try:
        yield handle
    finally:
        ended.set()
        renewer.join(END_SECONDS)
        if not renewer.is_alive():  # else the store hangs, and the lease grows stale
            with suppress(*STORE_ERRORS):
                handle.release()


def read_lease(output: Store) -> Lease | None:
    """Return the lease of an output, or None where no run has it."""
    lease = claims.newest_lease(output)
    if lease is None or lease.state == "released":
        return None
    return lease


def _acquire(output: Store, run_id: str | None, wait: bool, patience: float | None) -> Claim:
    watch = Watch()
    began = time.monotonic()
    told = ""
    while True:
        found = claims.look(output)
        rivals = watch.living(found.claims)
        if not rivals:
            held = _try_to_acquire(output, run_id, found, watch)
            if held is not None:
                return held
            continue
        if not wait and watch.is_alive(rivals[-1]):
            raise _in_use(output, rivals[-1])
        if wait and patience is not None and time.monotonic() > began + patience:
            raise OutputInUseError(
                f"output {output.root}: {describe(rivals[-1].lease)} was still at work on it when"
                " the budget was spent. Nothing was done; run again when it has ended"
            )
        other = describe(rivals[-1].lease)
        if other != told:
            told = other
            logger.warning("waiting, as another run has the output", extra={"other": other})
        time.sleep(POLL_SECONDS)


def _in_use(output: Store, other: Claim) -> OutputInUseError:
    lease = other.lease
    return OutputInUseError(
        f"output {output.root}: {describe(lease)} is at work on it since {lease.since}, and gave a"
        f" sign of life at {lease.renewed} ({other.path} there says so, and counts for nothing"
        f" {claims.STALE_SECONDS:.0f} s after the last one). Give --wait to start when it has"
        " ended, or another output"
    )


def _try_to_acquire(output: Store, run_id: str | None, found: Look, watch: Watch) -> Claim | None:
    """Return the lease of this process, or None, without a trace, where another came first."""
    claim = _claim(output, run_id, found)
    if claim is None:
        return None
    held = None
    try:
        if _prevails(output, claim, watch):
            held = _hold(output, claim, run_id)
    finally:
        if held is None:
            with suppress(*STORE_ERRORS):
                output.remove(claim.path)
    return held


def _claim(output: Store, run_id: str | None, found: Look) -> Claim | None:
    """Write a claim with a number, or return None where another process was faster."""
    lease = claims.new_lease(output, run_id or "", found)
    if not creates_exclusively(output):
        claim = Claim(lease_path(lease.fence, lease.token), lease)
        claims.write_claim(output, claim)
        return claim
    claim = Claim(lease_path(lease.fence), lease)
    if create(output, claim.path, lease.model_dump_json(indent=1).encode()):
        return claim
    return None


def _prevails(output: Store, own: Claim, watch: Watch) -> bool:
    """Wait until no living claim is left but this one; return False where it must be withdrawn."""
    while True:
        found = claims.look(output).claims
        others = [claim for claim in found if claim.lease.token != own.lease.token]
        if len(others) == len(found):
            return False  # it was removed
        rivals = watch.living(others)
        if _must_withdraw(own, others, rivals):
            return False
        if not rivals:
            return True
        time.sleep(CONTEND_SECONDS)


def _must_withdraw(own: Claim, others: Sequence[Claim], rivals: Sequence[Claim]) -> bool:
    """Return whether a claim gives way: to the lease of another, or to a claim that comes first.

    Rivals that it comes before see it, and give way themselves.

    Args:
        own: the claim.
        others: all others.
        rivals: those of them that live.
    """
    for other in others:
        if other.lease.fence > own.lease.fence:
            return True
        # Its process may wake up and write it again: only a greater number is safe from that.
        if other.lease.fence == own.lease.fence and other not in rivals:
            return True
    return any(_comes_before(rival, own) for rival in rivals)


def _comes_before(rival: Claim, own: Claim) -> bool:
    if rival.was_held:
        return True
    return rival.lease.fence == own.lease.fence and rival.lease.token < own.lease.token


def _hold(output: Store, claim: Claim, run_id: str | None) -> Claim | None:
    """Write that a claim is held now, or return None where it was taken for dead meanwhile."""
    changes = {"state": "held", "run_id": run_id or next_run_id(output, claim.lease.latest_run)}
    held = claim._replace(lease=claim.lease.model_copy(update=changes))
    claims.write_claim(output, held)
    if claims.is_superseded(output, held):
        return None
    with suppress(*STORE_ERRORS):
        claims.remove_older(output, held)
    return held


def _renew_until(ended: threading.Event, handle: LeaseHandle) -> None:
    while not ended.wait(RENEW_SECONDS):
        try:
            handle.renew()
        except Exception as error:  # whatever it is, the next renewal may pass
            reason = f"{type(error).__name__}: {error}"
            logger.warning("lease not renewed", extra={"reason": reason})


def _clock() -> float:
    """Return seconds that pass also while the machine sleeps, where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
