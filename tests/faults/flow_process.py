"""A run in a process of its own, with a model that answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import NamedTuple

from tests.support.fakes import FACTORY, OLDER_FACTORY, use_older_code
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output import claims, lease, process

# Imported by the process that runs are forked from.
PRELOADED = ["tests.faults.flow_process", "wordmask.flows.segment", "tests.support.fakes", "s3fs"]


class Quirks(NamedTuple):
    """What is otherwise in the process of a run than in others.

    `clock_hours`: how far its clock is ahead. `stale_seconds`: how long leases live unrenewed.
    `pid_namespace`: the file whose number stands for the namespace of its process number.
    """

    clock_hours: float = 0.0
    stale_seconds: float = claims.STALE_SECONDS
    pid_namespace: Path = process.PID_NAMESPACE


NO_QUIRKS = Quirks()


def run_flow(
    settings: str,
    environ: Mapping[str, str],
    report: Path,
    factory: str = FACTORY,
    quirks: Quirks = NO_QUIRKS,
) -> None:
    """Run to the end in a session of its own, and write a report: the summary, or the error.

    The exit code is 1 after an error.
    """
    if factory == OLDER_FACTORY:
        use_older_code()
    os.setsid()
    log = os.open(report.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environ)
    from wordmask.flows.segment import segment

    _take_on(quirks)
    try:
        summary = segment(RunSettings.model_validate_json(settings), factory=factory)
    except Exception as error:
        report.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    report.write_text(summary.model_dump_json())


def _take_on(quirks: Quirks) -> None:
    """Make this process as its quirks have it."""
    lease.RENEW_SECONDS *= quirks.stale_seconds / claims.STALE_SECONDS
    claims.STALE_SECONDS = quirks.stale_seconds
    process.PID_NAMESPACE = quirks.pid_namespace
    if quirks.clock_hours:
        _shift_clock(timedelta(hours=quirks.clock_hours))


def _shift_clock(shift: timedelta) -> None:
    """Let the project's modules read another time, and requests be signed with the right one."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:
            return super().now(tz) + shift

    for name, module in list(sys.modules.items()):
        if name.startswith("wordmask.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Shifted
