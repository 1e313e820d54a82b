"""A run as a process of its own, with a model that answers at once: what the faults are done to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from wordmask.schemas.settings import RunSettings

FACTORY = "tests.support.fakes:FakeSegmenter"
PRELOADED = [
    "tests.faults.night",
    "wordmask.flows.segment",
    "tests.support.fakes",
    "s3fs",
]  # by the process that nights are forked from


def run_night(settings: str, environ: Mapping[str, str], said: Path) -> None:
    """Run to the end in a session of its own, and write what came of it to `said`: the summary, or
    the error (exit code 1).
    """
    os.setsid()
    log = os.open(said.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.update(environ)
    from wordmask.flows.segment import segment

    try:
        summary = segment(RunSettings.model_validate_json(settings), factory=FACTORY)
    except Exception as error:
        said.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    said.write_text(summary.model_dump_json())
