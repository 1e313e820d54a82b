"""A run in a process of its own, with a model that answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.fakes import FACTORY, OLDER_FACTORY, use_older_code
from wordmask.schemas.settings import RunSettings

# Imported by the process that runs are forked from.
PRELOADED = ["tests.faults.flow_process", "wordmask.flows.segment", "tests.support.fakes", "s3fs"]


def run_flow(
    settings: str, environ: Mapping[str, str], report: Path, factory: str = FACTORY
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

    try:
        summary = segment(RunSettings.model_validate_json(settings), factory=factory)
    except Exception as error:
        report.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    report.write_text(summary.model_dump_json())
