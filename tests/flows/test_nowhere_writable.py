"""A user who can write neither beside the code nor at home, as in a container with any user id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.folders import PACKAGES, ROOT
from tests.support.tables import png, read_rows, write_input

# Root may write everywhere unless these are taken away.
POWERS = "-dac_override,-dac_read_search,-fowner"
UNPRIVILEGED = ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}"]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Return a copy of the product that nobody may write to."""
    copy = tmp_path / "code"
    shutil.copytree(ROOT / "wordmask", copy / "wordmask", symlinks=True)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in [*copy.rglob("*"), copy]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    return copy


def command_in(code: Path, scratch: Path, *words: str) -> str:
    """Return what a command of the product prints, which must end well."""
    prefix: list[str] = []
    if os.getuid() == 0:
        prefix = UNPRIVILEGED
    environ = {
        "HOME": "/proc/none",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(code),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    command = [*prefix, sys.executable, "-B", "-m", "wordmask.flows.cli.app", *words]
    done = subprocess.run(
        command, cwd=scratch, env=environ, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Return the working folder of the command, which is its temporary folder, too."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_one_image_is_segmented_and_what_was_compiled_is_kept(code: Path, scratch: Path) -> None:
    (scratch / "a.png").write_bytes(png())
    found = json.loads(command_in(code, scratch, "segment", "a.png", "a thing", "--json"))
    assert found["status"] in ("mask", "absent")
    assert [*scratch.glob("wordmask-*/*/*.nbi")]


@pytest.mark.timeout(600)  # three processes compile anew
def test_a_table_is_segmented_and_nothing_is_written_beside_the_code(
    code: Path, scratch: Path
) -> None:
    before = sorted(code.rglob("*"))
    write_input(scratch / "in.parquet", [{"image": png(), "query": "a thing"}])
    command_in(
        code, scratch, "run", "in.parquet", "out", "--workers", "1", "--refiner-iterations", "0"
    )
    assert len(read_rows(scratch / "out", "masks")) == 1
    assert sorted(code.rglob("*")) == before
