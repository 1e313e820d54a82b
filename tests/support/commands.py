"""The installed command, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORDMASK = Path(sys.executable).parent / "wordmask"


def wordmask(
    *words: object, code: int = 0, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command, which must end with this exit code and without a traceback."""
    command = [str(WORDMASK), *map(str, words)]
    env = {**os.environ, "COLUMNS": "160", **environ}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, cwd=cwd, env=env
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done
