"""All scenarios of the fault suite: each does a run under a fault."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil

from tests.faults.bucket import Bucket, RunEnd
from tests.faults.clusters import CLUSTER_SCENARIOS
from tests.faults.inputs import INPUT_SCENARIOS
from tests.faults.leases import LEASE_SCENARIOS
from tests.faults.proxy import Fault
from tests.faults.scenario import ANY, INPUT, MASKS, RECEIPTS, Scenario, is_worker, kill
from tests.support.fakes import OLDER_FACTORY


def store_fault(request: str, kind: str, times: int, skip: int = 0) -> Callable[[Bucket], RunEnd]:
    """Let some requests of the store meet a fault."""

    def disturb(bucket: Bucket) -> RunEnd:
        fault = Fault(request=request, kind=kind, times=times, skip=skip)
        end = bucket.run(faults=[fault])
        assert fault.happened, f"the fault did not happen: {end}"
        return end

    return disturb


def worker_killed(request: str) -> Callable[[Bucket], RunEnd]:
    """Kill the first worker that makes a request, before the store sees it."""

    def disturb(bucket: Bucket) -> RunEnd:
        fault = Fault(request=request, kind="call", call=lambda pid: is_worker(pid) and kill(pid))
        end = bucket.run(faults=[fault])
        assert fault.happened, f"no worker was killed: {end}"
        return end

    return disturb


def flow_killed(bucket: Bucket) -> RunEnd:
    """Kill the flow's process as a shard is done: its workers, without a scheduler, must end."""
    process = bucket.start()
    workers: list[psutil.Process] = []

    def kill(_pid: int) -> bool:
        workers.extend(psutil.Process(process.pid).children())
        process.kill()
        return True

    fault = Fault(request=RECEIPTS, kind="call", call=kill)
    bucket.proxy.faults = [fault]
    end = bucket.wait(process)
    assert fault.happened, f"the flow was not killed: {end}"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, f"workers outlive the flow: {alive}"
    return end


def interrupted(bucket: Bucket) -> RunEnd:
    """Send SIGINT, as Ctrl-C does, to all of the run's processes."""
    process = bucket.start()
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: os.killpg(process.pid, signal.SIGINT) or True,
    )
    bucket.proxy.faults = [fault]
    end = bucket.wait(process)
    assert fault.happened, f"the run was not interrupted: {end}"
    return end


def from_the_first_receipt(kind: str) -> Callable[[Bucket], RunEnd]:
    """Let every request of a longer run meet the fault, once its first shard is done."""

    def disturb(bucket: Bucket) -> RunEnd:
        lasting = Fault(request=ANY, kind=kind, times=10**9)
        first = Fault(
            request=RECEIPTS,
            kind="call",
            call=lambda _pid: bucket.proxy.faults.append(lasting) or True,
        )
        began = time.monotonic()
        end = bucket.run(bucket.rows(24), faults=[first])
        assert lasting.happened, f"the fault did not happen: {end}"
        assert time.monotonic() - began < 300, "a store that is gone must end the run"
        return end

    return disturb


def upgraded(bucket: Bucket) -> RunEnd:
    """Kill a run of older code in the middle of the table: newer code goes on with it."""
    process = bucket.start(factory=OLDER_FACTORY)
    fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: kill(process.pid), skip=1)
    bucket.proxy.faults = [fault]
    end = bucket.wait(process)
    assert fault.happened, f"the flow was not killed: {end}"
    return end


def disk_full(bucket: Bucket) -> RunEnd:
    """Write the output to a local disk with room for a part or two."""
    bucket.use_small_disk()
    return bucket.run()


def poison_row(bucket: Bucket) -> RunEnd:
    rows = bucket.rows(12)
    rows[4]["query"] = "kill"
    return bucket.run(rows=rows)


def worker_dies_in_the_model(bucket: Bucket) -> RunEnd:
    rows = bucket.rows(12)
    rows[4]["query"] = f"die:{bucket.folder}/died"
    return bucket.run(rows=rows)


SCENARIOS = (
    Scenario(name="SIGKILL of a worker while it reads", disturb=worker_killed(INPUT), quick=True),
    Scenario(name="SIGKILL of a worker while it infers", disturb=worker_dies_in_the_model),
    Scenario(name="SIGKILL of a worker while it writes masks", disturb=worker_killed(MASKS)),
    Scenario(
        name="SIGKILL of a worker between data and receipt",
        disturb=worker_killed(RECEIPTS),
        quick=True,
    ),
    Scenario(name="SIGKILL of the flow", disturb=flow_killed, ends="killed", quick=True),
    Scenario(name="Ctrl-C", disturb=interrupted, ends="killed"),
    Scenario(name="a row that kills every process", disturb=poison_row),
    Scenario(
        name="503 SlowDown, 30 requests in a row",
        disturb=store_fault(ANY, "slow_down", 30, skip=45),
        quick=True,
    ),
    Scenario(
        name="connection reset before the request, 10 times",
        disturb=store_fault(ANY, "reset_before", 10, skip=20),
    ),
    Scenario(
        name="connection reset in the middle of a reply",
        disturb=store_fault(INPUT, "reset_during", 3, skip=1),
    ),
    Scenario(
        name="reply lost after the store did it",
        disturb=store_fault(MASKS, "lost_reply", 3),
        quick=True,
    ),
    Scenario(name="reply to a receipt lost", disturb=store_fault(RECEIPTS, "lost_reply", 2)),
    Scenario(name="slow replies", disturb=store_fault(ANY, "slow", 5, skip=10)),
    Scenario(name="truncated bodies", disturb=store_fault(INPUT, "truncated", 2, skip=1)),
    Scenario(
        name="credentials expire", disturb=from_the_first_receipt("expired"), ends="PermissionError"
    ),
    Scenario(
        name="store dies", disturb=from_the_first_receipt("reset_before"), ends="takes up the rest"
    ),
    Scenario(
        name="upgrade of the method in the middle of a table",
        disturb=upgraded,
        ends="killed",
        leaves_parts=True,
    ),
    Scenario(name="disk full", disturb=disk_full, ends="No space left on device"),
    *CLUSTER_SCENARIOS,
    *INPUT_SCENARIOS,
    *LEASE_SCENARIOS,
)
