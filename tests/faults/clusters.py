"""Scenarios of standing clusters: schedulers that end, workers that end or do not work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from distributed import Client

from tests.faults.bucket import Bucket, RunEnd
from tests.faults.proxy import Fault
from tests.faults.scenario import EVENT_SECONDS, MASKS, RECEIPTS, Scenario, is_worker
from tests.support.fakes import BROKEN_GPU, UNLOADABLE
from tests.support.servers import free_port
from tests.support.tables import png

SPOT_SECONDS = 20  # within which a worker must be gone after SIGTERM


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


def broken_gpu(bucket: Bucket) -> RunEnd:
    """Have every call of the model fail on one of two standing workers, as a broken GPU does."""
    return _run_with_a_bad_worker(bucket, BROKEN_GPU, workers=2)


def unloadable_model(bucket: Bucket) -> RunEnd:
    """Have one of four standing workers fail to load the model, whenever it tries."""
    return _run_with_a_bad_worker(bucket, UNLOADABLE, workers=4)


def _run_with_a_bad_worker(bucket: Bucket, factory: str, workers: int) -> RunEnd:
    with StandingCluster(bucket, workers=workers) as cluster:
        cluster.wait_for_workers()
        end = bucket.run(bucket.rows(24), scheduler=cluster.address, factory=factory)
    assert bucket.bad_process.exists(), f"no worker was bad: {end}"
    assert end.report.get("rejects") == {}, f"rows were blamed: {end}"
    return end


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

    def wait_for_workers(self) -> None:
        """Wait until all workers are there: a run begins with those that it finds."""
        with Client(self.address, timeout=EVENT_SECONDS) as client:
            client.wait_for_workers(len(self.workers), timeout=EVENT_SECONDS)

    def __enter__(self) -> StandingCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


CLUSTER_SCENARIOS = (
    Scenario(name="SIGTERM of a worker (spot preemption)", disturb=worker_preempted),
    Scenario(
        name="scheduler dies and is restarted",
        disturb=scheduler_restarted,
        ends="the Dask scheduler went away",
    ),
    Scenario(name="worker over its memory limit", disturb=memory_limit),
    Scenario(name="a GPU of two that fails every call", disturb=broken_gpu),
    Scenario(name="one worker of four that cannot load the model", disturb=unloadable_model),
)
