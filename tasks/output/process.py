"""Which process of which machine wrote a record, and whether it is surely over.

A host's name and a process number say little: containers share both. A process is known by the
machine's boot, the namespace that its number belongs to, its number and its start. Where the system
tells less than that, no process counts as over.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")
START_FIELD = 19  # in /proc/PID/stat, counted behind the program's name


class Process(NamedTuple):
    """A process. A field is "" where the system does not tell it."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: str


def this_process() -> Process:
    """Return what this process is known by."""
    pid = os.getpid()
    return Process(platform.node(), _boot_id(), _pid_namespace(), pid, _start_of(pid))


def has_ended(process: Process) -> bool:
    """Return whether a process is surely over; False says nothing."""
    return _is_visible(process) and not _is_there(process)


def is_running(process: Process) -> bool:
    """Return whether a process is surely there; False says nothing."""
    return _is_visible(process) and bool(process.started) and _is_there(process)


def _is_visible(process: Process) -> bool:
    """Return whether the process's number means the same process here."""
    known = all((process.boot_id, process.pid_namespace))
    own = this_process()
    return known and process[:3] == own[:3]


def _is_there(process: Process) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _start_of(process.pid)
    # Another start means that the number was given to another process.
    return "" in (started, process.started) or started == process.started


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(PID_NAMESPACE.stat().st_ino)
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since the machine did."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    behind_name = stat.rpartition(")")[2].split()
    return behind_name[START_FIELD]
