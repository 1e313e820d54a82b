"""Scenarios of two runs on one output, and of clocks that are wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.faults.bucket import Bucket, RunEnd, table_bytes
from tests.faults.flow_process import Quirks
from tests.faults.proxy import Fault
from tests.faults.scenario import LEASES, RECEIPTS, Scenario, wait_until
from tests.support.tables import png

BRIEF_LEASE = Quirks(stale_seconds=20.0)
HOURS = 24.0  # by which a clock is wrong


def late_writer(bucket: Bucket) -> RunEnd:
    """Let receipts of a killed run arrive after the next one was published.

    The killed run rejected the rows of an image that was missing, and is there by then.
    """
    rows = bucket.rows(12)
    for number, row in enumerate(rows):
        row["image"] = f"{number % 4}.png"
    for number in (0, 2, 3):
        bucket.put(f"in/{number}.png", png(number))
    held = Fault(request=RECEIPTS, kind="held", times=10**9)
    process = bucket.start(rows)
    bucket.proxy.faults = [held]
    wait_until(lambda: held.bodies_held, "a receipt on its way")
    os.killpg(process.pid, signal.SIGKILL)
    bucket.wait(process)
    bucket.put("in/1.png", png(1))
    end = bucket.run()
    in_time = set(bucket.names("out/receipts"))
    held.released.set()
    all_receipts = len(in_time) + held.bodies_held
    wait_until(lambda: len(bucket.names("out/receipts")) == all_receipts, "the late receipts")
    late = set(bucket.names("out/receipts")) - in_time
    receipts = [bucket.get(f"out/receipts/{name}") for name in late]
    assert all(b"image_not_found" in receipt for receipt in receipts), "the same answers"
    return end


def paused(bucket: Bucket) -> RunEnd:
    """Stop a whole run until its lease is over and another run was published; then let it go on."""
    first = bucket.start(quirks=BRIEF_LEASE)
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: os.killpg(first.pid, signal.SIGSTOP) or True,
    )
    bucket.proxy.faults = [fault]
    wait_until(lambda: fault.happened, "a receipt")
    try:
        second = bucket.run(wait=True, quirks=BRIEF_LEASE)
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert second.code == 0, f"the run that took over failed: {second.report}"
    return bucket.wait(first)


def slow_claims(bucket: Bucket) -> RunEnd:
    """Start two runs at once on a store that is slow to take the records of leases.

    Neither knows what the other's process number means, as in containers.
    """
    fault = Fault(request=LEASES, kind="late", times=10**9)
    bucket.proxy.faults = [fault]
    processes = []
    for number in range(2):
        namespace = bucket.folder / f"namespace-{number}"
        namespace.touch()
        quirks = BRIEF_LEASE._replace(pid_namespace=namespace)
        processes.append(bucket.start(wait=True, quirks=quirks))
    ends = [bucket.wait(process) for process in processes]
    assert fault.happened, f"no record was slow: {ends}"
    assert [end.code for end in ends] == [0, 0], f"one lost its lease: {ends}"
    computed = sorted(end.report["shards_computed"] for end in ends)
    assert computed == [0, 4], f"two worked at once: {ends}"
    return ends[0]


def wrong_clock(first_hours: float, second_hours: float) -> Callable[[Bucket], RunEnd]:
    """Do a run, change the table, and do another; the clock of one of them is wrong."""

    def disturb(bucket: Bucket) -> RunEnd:
        first = bucket.run(quirks=Quirks(clock_hours=first_hours))
        assert first.code == 0, f"the first run failed: {first.report}"
        bucket.put("in/table.parquet", table_bytes(bucket.rows(12, words="changed")))
        end = bucket.run(quirks=Quirks(clock_hours=second_hours))
        newest = max(bucket.names("out/runs"))
        assert newest == f"{end.report.get('run_id')}.json", f"{newest} hides the later run: {end}"
        return end

    return disturb


LEASE_SCENARIOS = (
    Scenario(name="a late writer", disturb=late_writer, leaves_parts=True),
    Scenario(
        name="a run that is paused while another takes over", disturb=paused, ends="lost it to run"
    ),
    Scenario(name="slow writes of the lease, two runs at once", disturb=slow_claims),
    Scenario(name="a clock a day ahead", disturb=wrong_clock(HOURS, 0), leaves_parts=True),
    Scenario(name="a clock a day behind", disturb=wrong_clock(0, -HOURS), leaves_parts=True),
)
