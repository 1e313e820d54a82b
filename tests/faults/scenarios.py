"""What can go wrong in a night, each as a function that does it and says what the disturbed run must have said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.lake import Lake, Night, table_bytes
from tests.faults.proxy import Fault

INPUT, MASKS, RECEIPTS = r"GET /lake/in/table\.parquet.*", r"PUT /lake/out/masks/part-.*", r"PUT /lake/out/receipts/.*"
ANY = r".*/lake/(in|out)/.*"
SPOT_SECONDS = 20  # within which a worker must be gone after SIGTERM


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`disturb` runs the night with the fault and gives back how it ended. `ends`: whether that run must end well ("done"), must fail with
    words of an error, or was killed ("killed"). `changed_input`: the rerun is compared with a night over the new input."""

    name: str
    disturb: Callable[[Lake], Night]
    ends: str = "done"
    changed_input: bool = False
    quick: bool = False


def store_fault(request: str, kind: str, times: int, skip: int = 0) -> Callable[[Lake], Night]:
    def disturb(lake: Lake) -> Night:
        fault = Fault(request=request, kind=kind, times=times, skip=skip)
        night = lake.night(faults=[fault])
        assert fault.happened, "the fault did not happen"
        return night

    return disturb


def worker_killed(request: str, signum: int = signal.SIGKILL, skip: int = 0) -> Callable[[Lake], Night]:
    """Send a signal to the first worker that makes a request, before the store sees it."""

    def disturb(lake: Lake) -> Night:
        killed: list[tuple[int, float]] = []

        def kill(pid: int | None) -> bool:
            if pid is None or not is_worker(pid):
                return False
            os.kill(pid, signum)
            killed.append((pid, time.monotonic()))
            return True

        fault = Fault(request=request, kind="call", call=kill, skip=skip)
        night = lake.night(faults=[fault])
        assert fault.happened, "no worker was killed"
        (pid, _) = killed[0]
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "the worker is still there"
        return night

    return disturb


def is_worker(pid: int) -> bool:
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False
    return any("multiprocessing" in word and "spawn_main" in word for word in words)


def flow_killed(lake: Lake) -> Night:
    """SIGKILL of the flow's process once a shard is done; its workers are left without a scheduler."""
    process = lake.start()
    fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: process.kill() or True)
    lake.proxy.faults = [fault]
    process.communicate(timeout=120)
    assert fault.happened, "the flow was not killed"
    return Night(code=process.returncode, said={})


def interrupted(lake: Lake) -> Night:
    """SIGINT, as Ctrl-C gives it, to all of the run's processes."""
    process = lake.start()
    fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: os.killpg(process.pid, signal.SIGINT) or True)
    lake.proxy.faults = [fault]
    process.communicate(timeout=120)
    return Night(code=process.returncode, said={})


def scheduler_restarted(lake: Lake) -> Night:
    """A standing cluster whose scheduler dies in the middle of a run, and comes back before the next."""
    cluster = StandingCluster(lake)
    try:
        fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: cluster.scheduler.kill() or True)
        return lake.night(faults=[fault], scheduler=cluster.address)
    finally:
        cluster.close()


def memory_limit(lake: Lake) -> Night:
    """A standing worker that its nanny kills for taking too much memory, once."""
    cluster = StandingCluster(lake, "--memory-limit", "700MB")
    try:
        return lake.night(
            rows=[*lake.rows(11), {"row_id": "hog", "image": lake.image(0), "query": f"hog:{lake.folder}/hogged"}],
            scheduler=cluster.address,
        )
    finally:
        cluster.close()


class StandingCluster:
    """`dask scheduler` and one `dask worker` as processes."""

    def __init__(self, lake: Lake, *worker_options: str) -> None:
        port = lake.free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        dask = str(Path(sys.executable).parent / "dask")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": lake.environ(), "start_new_session": True}
        self.scheduler = subprocess.Popen([dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet)
        command = [dask, "worker", self.address, "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1", *worker_options]
        self.worker = subprocess.Popen(command, **quiet, cwd=Path(__file__).parents[2])

    def close(self) -> None:
        for process in (self.worker, self.scheduler):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def credentials_expired(lake: Lake) -> Night:
    return lake.night(faults=[Fault(request=ANY, kind="expired", times=10**9, skip=60)])


def store_dead(lake: Lake) -> Night:
    began = time.monotonic()
    night = lake.night(faults=[Fault(request=ANY, kind="reset_before", times=10**9, skip=60)])
    assert time.monotonic() - began < 300, "a dead store must end the run"
    return night


def input_replaced(lake: Lake) -> Night:
    """Another table under the same name, once a shard is done."""
    new = table_bytes(lake.rows(12, words="changed"))
    fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: lake.put_behind("in/table.parquet", new) or True)
    return lake.night(faults=[fault])


def input_deleted(lake: Lake) -> Night:
    """The table is gone for the rest of the night, and back in the morning."""
    data = lake.get_behind("in/table.parquet")
    fault = Fault(request=RECEIPTS, kind="call", call=lambda _pid: lake.delete_behind("in/table.parquet") or True)
    night = lake.night(faults=[fault])
    lake.put_behind("in/table.parquet", data)
    return night


def disk_full(lake: Lake) -> Night:
    """A local output on a disk with room for a part or two."""
    return lake.night(output=lake.small_disk())


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
    Scenario(name="SIGKILL of a worker between data and receipt", disturb=worker_killed(RECEIPTS), quick=True),
    Scenario(name="SIGTERM of a worker (spot preemption)", disturb=worker_killed(MASKS, signal.SIGTERM)),
    Scenario(name="SIGKILL of the flow", disturb=flow_killed, ends="killed", quick=True),
    Scenario(name="Ctrl-C", disturb=interrupted, ends="killed"),
    Scenario(name="scheduler dies and is restarted", disturb=scheduler_restarted, ends="the Dask scheduler went away"),
    Scenario(name="worker over its memory limit", disturb=memory_limit),
    Scenario(name="a row that kills every process", disturb=poison),
    Scenario(name="503 SlowDown, 30 times", disturb=store_fault(ANY, "slow_down", 30, skip=8), quick=True),
    Scenario(name="connection reset before the request, 10 times", disturb=store_fault(ANY, "reset_before", 10, skip=20)),
    Scenario(name="connection reset in the middle of a reply", disturb=store_fault(INPUT, "reset_during", 3, skip=1)),
    Scenario(name="reply lost after the store did it", disturb=store_fault(MASKS, "lost_reply", 3), quick=True),
    Scenario(name="reply to a receipt lost", disturb=store_fault(RECEIPTS, "lost_reply", 2)),
    Scenario(name="slow replies", disturb=store_fault(ANY, "slow", 5, skip=10)),
    Scenario(name="truncated bodies", disturb=store_fault(INPUT, "truncated", 2, skip=1)),
    Scenario(name="credentials expire", disturb=credentials_expired, ends="ExpiredToken"),
    Scenario(name="store dies", disturb=store_dead, ends=""),
    Scenario(name="input deleted in the middle of a run", disturb=input_deleted, ends="table.parquet"),
    Scenario(name="input replaced in the middle of a run", disturb=input_replaced, ends="Run again to plan it anew", changed_input=True),
    Scenario(name="disk full", disturb=disk_full, ends="No space left on device"),
)
