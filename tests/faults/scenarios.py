"""Faults of a run, each as a function that does a run under the fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.bucket import Bucket, RunEnd, table_bytes
from tests.faults.proxy import Fault
from tests.support.fakes import OLDER_FACTORY
from tests.support.servers import free_port
from tests.support.tables import png

# Requests of the store.
INPUT = r"GET /lake/in/table\.parquet.*"
MASKS = r"PUT /lake/out/masks/part-.*"
RECEIPTS = r"PUT /lake/out/receipts/.*"
ANY = r".*/lake/(in|out)/.*"
SPOT_SECONDS = 20  # within which a worker must be gone after SIGTERM


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run under a fault, and how it must end.

    Attributes:
        disturb: does the run.
        ends: "done", "killed", or words of the error that it must end with.
        repeat: settings of the repeated run.
        changed_input: whether the repeated run is compared with one over the new input.
        quick: whether it is one of the few that `--quick` does.
    """

    name: str
    disturb: Callable[[Bucket], RunEnd]
    ends: str = "done"
    repeat: Mapping[str, Any] = field(default_factory=dict)
    changed_input: bool = False
    quick: bool = False


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
        fault = Fault(request=request, kind="call", call=lambda pid: is_worker(pid) and _kill(pid))
        end = bucket.run(faults=[fault])
        assert fault.happened, f"no worker was killed: {end}"
        return end

    return disturb


def _kill(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def worker_preempted(bucket: Bucket) -> RunEnd:
    """Send SIGTERM to one of two standing workers while it writes, as spot machines get it."""
    with StandingCluster(bucket, workers=2) as cluster:
        gone: list[float] = []

        def preempt(pid: int) -> bool:
            if not is_worker(pid):
                return False
            parent = psutil.Process(pid).ppid()
            (worker,) = (worker for worker in cluster.workers if worker.pid == parent)
            worker.terminate()
            threading.Thread(target=time_its_end, args=(worker,), daemon=True).start()
            return True

        def time_its_end(worker: subprocess.Popen[bytes]) -> None:
            begin = time.monotonic()
            worker.wait()
            gone.append(time.monotonic() - begin)

        fault = Fault(request=MASKS, kind="call", call=preempt)
        end = bucket.run(faults=[fault], scheduler=cluster.address)
        assert fault.happened, f"no worker was terminated: {end}"
        give_up = time.monotonic() + SPOT_SECONDS
        while not gone and time.monotonic() < give_up:
            time.sleep(0.1)
        assert gone, "the worker is still there"
        assert gone[0] < SPOT_SECONDS, f"the worker took {gone[0]:.0f} s to end"
        return end


def is_worker(pid: int) -> bool:
    return any("multiprocessing.spawn" in word for word in psutil.Process(pid).cmdline())


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


def scheduler_restarted(bucket: Bucket) -> RunEnd:
    """Restart a standing scheduler in the middle of a run: it forgets the run, and workers end."""
    with StandingCluster(bucket) as cluster:
        fault = Fault(
            request=RECEIPTS, kind="call", call=lambda _pid: cluster.restart_scheduler() or True
        )
        end = bucket.run(faults=[fault], scheduler=cluster.address)
        assert fault.happened, f"the scheduler was not restarted: {end}"
        return end


def memory_limit(bucket: Bucket) -> RunEnd:
    """Have a standing worker take too much memory once, for which its nanny kills it."""
    rows = [
        *bucket.rows(11),
        {"row_id": "hog", "image": png(0), "query": f"hog:{bucket.folder}/hogged"},
    ]
    with StandingCluster(bucket, "--memory-limit", "1200MB") as cluster:
        return bucket.run(rows=rows, scheduler=cluster.address)


class StandingCluster:
    """`dask scheduler` and some `dask worker`s as processes."""

    def __init__(self, bucket: Bucket, *worker_options: str, workers: int = 1) -> None:
        self._bucket = bucket
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler = self._start_scheduler()
        self.workers = [
            self._start(
                "worker",
                self.address,
                "--nthreads",
                "2",
                "--no-dashboard",
                "--host",
                "127.0.0.1",
                *worker_options,
            )
            for _ in range(workers)
        ]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        quiet = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "env": self._bucket.environ(),
            "cwd": self._bucket.folder,
        }
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "dask"), *words], **quiet, start_new_session=True
        )

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        return self._start(
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            self.address.rpartition(":")[2],
            "--no-dashboard",
        )

    def restart_scheduler(self) -> None:
        self.scheduler.kill()
        self.scheduler.wait()
        self.scheduler = self._start_scheduler()

    def __enter__(self) -> StandingCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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


def input_replaced(bucket: Bucket) -> RunEnd:
    """Put another table under the same name, once a shard is done."""
    new = table_bytes(bucket.rows(12, words="changed"))
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: bucket.put("in/table.parquet", new) or True,
    )
    return bucket.run(faults=[fault])


def input_deleted(bucket: Bucket) -> RunEnd:
    """Delete the table for the rest of the run, and put it back afterwards."""
    data = table_bytes(bucket.rows(12))
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: bucket.delete("in/table.parquet") or True,
    )
    end = bucket.run(faults=[fault])
    bucket.put("in/table.parquet", data)
    return end


def image_overwritten(bucket: Bucket) -> RunEnd:
    """Put another image behind a URI of the table, which stays as it is, after a whole run."""
    for number in range(4):
        bucket.put(f"in/{number}.png", png(number))
    rows = bucket.rows(12)
    for number, row in enumerate(rows):
        row["image"] = f"{number % 4}.png"
    end = bucket.run(rows=rows)
    bucket.put("in/1.png", png(9))
    return end


def upgraded(bucket: Bucket) -> RunEnd:
    """Kill a run of older code in the middle of the table: newer code goes on with it."""
    process = bucket.start(factory=OLDER_FACTORY)
    fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: _kill(process.pid), skip=1)
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
    Scenario(name="SIGTERM of a worker (spot preemption)", disturb=worker_preempted),
    Scenario(name="SIGKILL of the flow", disturb=flow_killed, ends="killed", quick=True),
    Scenario(name="Ctrl-C", disturb=interrupted, ends="killed"),
    Scenario(
        name="scheduler dies and is restarted",
        disturb=scheduler_restarted,
        ends="the Dask scheduler went away",
    ),
    Scenario(name="worker over its memory limit", disturb=memory_limit),
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
        name="input deleted in the middle of a run", disturb=input_deleted, ends="table.parquet"
    ),
    Scenario(
        name="input replaced in the middle of a run",
        disturb=input_replaced,
        changed_input=True,
    ),
    Scenario(
        name="an image replaced behind an unchanged URI",
        disturb=image_overwritten,
        repeat={"check_images": True},
        changed_input=True,
    ),
    Scenario(
        name="upgrade of the method in the middle of a table",
        disturb=upgraded,
        ends="killed",
        changed_input=True,
    ),
    Scenario(name="disk full", disturb=disk_full, ends="No space left on device"),
)
