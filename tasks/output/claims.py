"""The records by which runs claim an output, and what they say about who is at work.

No record is written by two processes. A claim that nobody else saw, once it was written, becomes
the lease. The one with the greatest fencing number is the newest; the records of older ones count
no more, and the last one stays, so that the numbers never fall.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from uuid import uuid4

from pydantic import Field, ValidationError

from wordmask.schemas.settings import Frozen
from wordmask.tasks.output import process
from wordmask.tasks.output.catalog import OLD_LEASE_PATH, RUN_ID, lease_fences, recorded_fence
from wordmask.tasks.storage import Store

STALE_SECONDS = 60.0  # without a renewal, by the clock of the one who waits for it


class Lease(Frozen):
    """Which run works on an output, wants to, or did last.

    Records of older versions have no fence and none of what identifies the process.
    """

    token: str = Field(description="of this lease alone")
    run_id: str
    latest_run: str = Field("", description="the greatest id of a run that had a lease before")
    fence: int = Field(0, description="greater than that of every earlier lease of the output")
    state: Literal["claimed", "held", "released"] = "held"
    host: str = Field(description="name of the machine that the run was started on")
    boot_id: str = Field("", description="of that machine since it was started")
    pid_namespace: str = Field("", description="that `pid` belongs to")
    pid: int = Field(description="process there")
    process_start: str = Field("", description="of the process, in ticks since the machine's")
    since: str = Field(description="when the run began")
    renewed: str = Field(description="the last sign of life")
    renewals: int = Field(0, description="how many there were")


class Claim(NamedTuple):
    """A lease, wanted, held or released, and its path."""

    path: str
    lease: Lease

    @property
    def is_released(self) -> bool:
        """Whether its run has ended in order."""
        return self.lease.state == "released"

    @property
    def was_held(self) -> bool:
        """Whether it ever was more than a claim."""
        return self.lease.state != "claimed"


class Look(NamedTuple):
    """What was found at one look at an output's records.

    `claims`: that of an older version first, then by number. `highest`: of all numbers, also of
    records that cannot be read; 0 where there is none.
    """

    claims: list[Claim]
    highest: int

    @property
    def latest_run(self) -> str:
        """The greatest id of a run that has or had a lease, "" where none is known."""
        leases = [claim.lease for claim in self.claims]
        ids = [run_id for lease in leases for run_id in (lease.run_id, lease.latest_run)]
        return max(filter(RUN_ID.fullmatch, ids), default="")


def look(output: Store) -> Look:
    """Return the records that there are."""
    fences = lease_fences(output)
    paths = [OLD_LEASE_PATH, *sorted(fences)]
    found = [(path, _read(output, path)) for path in paths]
    claims = [Claim(path, lease) for path, lease in found if lease is not None]
    return Look(claims, max(fences.values(), default=0))


def write_claim(output: Store, claim: Claim) -> None:
    """Write a record again, with the present time."""
    lease = claim.lease.model_copy(update={"renewed": now()})
    output.write_bytes(claim.path, lease.model_dump_json(indent=1).encode())


def newest_lease(output: Store) -> Lease | None:
    """Return the lease of the newest run that has or had one."""
    held = [claim.lease for claim in look(output).claims if claim.was_held]
    return max(held, key=lambda lease: lease.fence, default=None)


def newest_fence(output: Store) -> int:
    """Return the highest fencing number among the records; 0 where there is none."""
    return max(lease_fences(output).values(), default=0)


def next_fence(output: Store, found: Look) -> int:
    """Return a fencing number greater than every earlier one.

    It follows the look at which nobody was at work. A run that took the output since then has that
    number too: it must not find a greater one, which would mean that it was taken for dead. Where
    the records were removed, receipts and runs still have numbers.
    """
    highest = found.highest or recorded_fence(output)
    return highest + 1


def is_superseded(output: Store, claim: Claim) -> bool:
    """Return whether another process has claimed the output since, or the record was removed."""
    fences = lease_fences(output)
    return claim.path not in fences or max(fences.values()) > claim.lease.fence


def remove_older(output: Store, claim: Claim) -> None:
    """Remove the records that a claim supersedes."""
    output.remove(OLD_LEASE_PATH)
    for path, fence in lease_fences(output).items():
        if fence < claim.lease.fence:
            output.remove(path)


def new_lease(output: Store, run_id: str, found: Look) -> Lease:
    """Return the claim of this process for a run, after the look at which nobody was at work."""
    own = process.this_process()
    since = now()
    return Lease(
        token=uuid4().hex,
        run_id=run_id,
        latest_run=found.latest_run,
        fence=next_fence(output, found),
        state="claimed",
        host=own.host,
        boot_id=own.boot_id,
        pid_namespace=own.pid_namespace,
        pid=own.pid,
        process_start=own.started,
        since=since,
        renewed=since,
    )


class Watch:
    """Looks at claims again and again, and tells which of them live.

    It measures with its own clock how long a claim stays as it is: clocks of two machines need not
    agree. Only the end of a process of this machine is known at once.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Lease, float]] = {}  # by token; since when it is as it is
        self._renewed: set[str] = set()  # tokens

    def living(self, claims: Sequence[Claim]) -> list[Claim]:
        """Return the claims that stand in the way of another: neither over nor superseded."""
        for claim in claims:
            self._look(claim.lease)
        fences = [claim.lease.fence for claim in claims if claim.was_held]
        highest = max(fences, default=0)
        # Older versions know no fence: theirs is 0, and counts beside any other.
        counting = [claim for claim in claims if not 0 < claim.lease.fence < highest]
        return [claim for claim in counting if not self._is_over(claim)]

    def is_alive(self, claim: Claim) -> bool:
        """Return whether the process of a claim is surely at work. False says nothing."""
        lease = claim.lease
        if lease.token in self._renewed:
            return True
        age = datetime.now(UTC) - datetime.fromisoformat(lease.renewed)
        is_fresh = abs(age.total_seconds()) < STALE_SECONDS
        return is_fresh and process.is_running(_process_of(lease))

    def _look(self, lease: Lease) -> None:
        before, _ = self._seen.get(lease.token, (None, 0.0))
        if before == lease:
            return
        if before is not None:
            self._renewed.add(lease.token)
        self._seen[lease.token] = (lease, time.monotonic())

    def _is_over(self, claim: Claim) -> bool:
        lease = claim.lease
        if claim.is_released or process.has_ended(_process_of(lease)):
            return True
        _, since = self._seen[lease.token]
        return time.monotonic() - since > STALE_SECONDS


def describe(lease: Lease) -> str:
    """Return the words for the run that has a lease."""
    run = f"run {lease.run_id}"
    if not lease.run_id:
        run = "a run that begins"
    return f"{run} (process {lease.pid} on {lease.host})"


def now() -> str:
    """Return the time for people; no decision needs it to be right."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _process_of(lease: Lease) -> process.Process:
    return process.Process(
        host=lease.host,
        boot_id=lease.boot_id,
        pid_namespace=lease.pid_namespace,
        pid=lease.pid,
        started=lease.process_start,
    )


def _read(output: Store, path: str) -> Lease | None:
    try:
        return Lease.model_validate_json(output.read_bytes(path))
    except (FileNotFoundError, ValidationError):
        return None
