"""What a scenario of the fault suite is, and what the modules of scenarios share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.faults.bucket import Bucket, RunEnd

# Requests of the store.
INPUT = r"GET /lake/in/table\.parquet.*"
MASKS = r"PUT /lake/out/masks/part-.*"
RECEIPTS = r"PUT /lake/out/receipts/.*"
ANY = r".*/lake/(in|out)/.*"
LEASES = r"PUT /lake/out/leases/.*"
EVENT_SECONDS = 200  # for what a scenario waits for


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run under a fault, and how it must end.

    Attributes:
        disturb: does the run.
        ends: "done", "killed", or words of the error that it must end with.
        repeat: settings of the repeated run.
        leaves_parts: whether parts may be left that nobody reads any more.
        quick: whether it is one of the few that `--quick` does.
    """

    name: str
    disturb: Callable[[Bucket], RunEnd]
    ends: str = "done"
    repeat: Mapping[str, Any] = field(default_factory=dict)
    leaves_parts: bool = False
    quick: bool = False


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Wait for an event of a run.

    Raises:
        AssertionError: it does not happen; the message says what.
    """
    give_up = time.monotonic() + EVENT_SECONDS
    while not happened():
        assert time.monotonic() < give_up, f"{what}: not within {EVENT_SECONDS} s"
        time.sleep(0.1)


def kill(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def is_worker(pid: int) -> bool:
    return any("multiprocessing.spawn" in word for word in psutil.Process(pid).cmdline())
