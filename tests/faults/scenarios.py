"""What can go wrong in a night, each as a function that does it and says what the disturbed run
must have said.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.lake import Lake, Night, table_bytes
from tests.faults.proxy import Fault
from tests.support.servers import free_port

INPUT, MASKS, RECEIPTS = (
    r"GET /lake/in/table\.parquet.*",
    r"PUT /lake/out/masks/part-.*",
    r"PUT /lake/out/receipts/.*",
)
ANY = r".*/lake/(in|out)/.*"
SPOT_SECONDS = 20  # within which a worker must be gone after SIGTERM


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`disturb` runs the night with the fault and gives back how it ended. `ends`: whether that run
    must end well ("done"), must fail with words of an error, or was killed ("killed").
    `changed_input`: the rerun is compared with a night over the new input."""

    name: str
    disturb: Callable[[Lake], Night]
    ends: str = "done"
    changed_input: bool = False
    quick: bool = False


def store_fault(request: str, kind: str, times: int, skip: int = 0) -> Callable[[Lake], Night]:
    def disturb(lake: Lake) -> Night:
        fault = Fault(request=request, kind=kind, times=times, skip=skip)
        night = lake.night(faults=[fault])
        assert fault.happened, f"the fault did not happen: {night}"
        return night

    return disturb


def worker_killed(request: str) -> Callable[[Lake], Night]:
    """SIGKILL of the first worker that makes a request, before the store sees it."""

    def disturb(lake: Lake) -> Night:
        fault = Fault(request=request, kind="call", call=lambda pid: is_worker(pid) and _kill(pid))
        night = lake.night(faults=[fault])
        assert fault.happened, f"no worker was killed: {night}"
        return night

    return disturb


def _kill(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def worker_preempted(lake: Lake) -> Night:
    """SIGTERM to one of two standing workers while it writes, as a machine gets it that is taken
    back.
    """
    with StandingCluster(lake, workers=2) as cluster:
        gone: list[float] = []

        def preempt(pid: int) -> bool:
            if not is_worker(pid):
                return False
            told = time.monotonic()
            (own,) = (
                worker for worker in cluster.workers if worker.pid == psutil.Process(pid).ppid()
            )
            own.terminate()
            threading.Thread(
                target=lambda: (own.wait(), gone.append(time.monotonic() - told)), daemon=True
            ).start()
            return True

        fault = Fault(request=MASKS, kind="call", call=preempt)
        night = lake.night(faults=[fault], scheduler=cluster.address)
        assert fault.happened, f"no worker was told to end: {night}"
        give_up = time.monotonic() + SPOT_SECONDS
        while not gone and time.monotonic() < give_up:
            time.sleep(0.1)
        assert gone, "the worker is still there"
        assert gone[0] < SPOT_SECONDS, f"the worker took {gone[0]:.0f} s to end"
        return night


def is_worker(pid: int) -> bool:
    return any("multiprocessing.spawn" in word for word in psutil.Process(pid).cmdline())


def flow_killed(lake: Lake) -> Night:
    """SIGKILL of the flow's process as a shard is done; its workers are left without a scheduler,
    and must not stay.
    """
    process = lake.start()
    workers: list[psutil.Process] = []

    def kill(_pid: int) -> bool:
        workers.extend(psutil.Process(process.pid).children())
        process.kill()
        return True

    fault = Fault(request=RECEIPTS, kind="call", call=kill)
    lake.proxy.faults = [fault]
    night = lake.end(process)
    assert fault.happened, f"the flow was not killed: {night}"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, f"workers outlive the flow: {alive}"
    return night


def interrupted(lake: Lake) -> Night:
    """SIGINT, as Ctrl-C gives it, to all of the run's processes."""
    process = lake.start()
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: os.killpg(process.pid, signal.SIGINT) or True,
    )
    lake.proxy.faults = [fault]
    night = lake.end(process)
    assert fault.happened, f"the run was not interrupted: {night}"
    return night


def scheduler_restarted(lake: Lake) -> Night:
    """A standing cluster whose scheduler is restarted in the middle of a run: it forgets the run,
    and its workers end.
    """
    with StandingCluster(lake) as cluster:
        fault = Fault(
            request=RECEIPTS, kind="call", call=lambda _pid: cluster.restart_scheduler() or True
        )
        night = lake.night(faults=[fault], scheduler=cluster.address)
        assert fault.happened, f"the scheduler was not restarted: {night}"
        return night


def memory_limit(lake: Lake) -> Night:
    """A standing worker that its nanny kills for taking too much memory, once."""
    rows = [
        *lake.rows(11),
        {"row_id": "hog", "image": lake.image(0), "query": f"hog:{lake.folder}/hogged"},
    ]
    with StandingCluster(lake, "--memory-limit", "1200MB") as cluster:
        return lake.night(rows=rows, scheduler=cluster.address)


class StandingCluster:
    """`dask scheduler` and some `dask worker`s as processes."""

    def __init__(self, lake: Lake, *worker_options: str, workers: int = 1) -> None:
        self._lake = lake
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
            "env": self._lake.environ(),
            "cwd": self._lake.folder,
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


def from_the_first_receipt(kind: str) -> Callable[[Lake], Night]:
    """Every request of a longer night meets the fault, once its first shard is done."""

    def disturb(lake: Lake) -> Night:
        lasting = Fault(request=ANY, kind=kind, times=10**9)
        first = Fault(
            request=RECEIPTS,
            kind="call",
            call=lambda _pid: lake.proxy.faults.append(lasting) or True,
        )
        began = time.monotonic()
        night = lake.night(lake.rows(24), faults=[first])
        assert lasting.happened, f"the fault did not happen: {night}"
        assert time.monotonic() - began < 300, "a store that is gone must end the run"
        return night

    return disturb


def input_replaced(lake: Lake) -> Night:
    """Another table under the same name, once a shard is done."""
    new = table_bytes(lake.rows(12, words="changed"))
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: lake.put_behind("in/table.parquet", new) or True,
    )
    return lake.night(faults=[fault])


def input_deleted(lake: Lake) -> Night:
    """The table is gone for the rest of the night, and back in the morning."""
    data = table_bytes(lake.rows(12))
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: lake.delete_behind("in/table.parquet") or True,
    )
    night = lake.night(faults=[fault])
    lake.put_behind("in/table.parquet", data)
    return night


def disk_full(lake: Lake) -> Night:
    """A local output on a disk with room for a part or two."""
    lake.use_small_disk()
    return lake.night()


def poison(lake: Lake) -> Night:
    rows = lake.rows(12)
    rows[4]["query"] = "kill"
    return lake.night(rows=rows)


def worker_dies_in_the_model(lake: Lake) -> Night:
    rows = lake.rows(12)
    rows[4]["query"] = f"die:{lake.folder}/died"
    return lake.night(rows=rows)


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
    Scenario(name="a row that kills every process", disturb=poison),
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
        ends="Run again to plan it anew",
        changed_input=True,
    ),
    Scenario(name="disk full", disturb=disk_full, ends="No space left on device"),
)
