"""The house is in order: import directions, lint, types, nothing of one machine in the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
PACKAGES = ("schemas", "model", "tasks", "flows")


@pytest.mark.parametrize("command", ["lint-imports", "ruff check .", "ruff format --check .", "mypy"])
def test_checks_are_clean(command: str) -> None:
    program, *words = command.split()
    done = subprocess.run([str(BIN / program), *words], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_path_of_a_machine_in_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    text_files = [ROOT / name for name in tracked if not name.endswith((".safetensors", ".png", ".npz", "LICENSE"))]
    pattern = re.compile(r"/(?:root|home)/\w|/work" + "/main")
    assert [str(path) for path in text_files if path.is_file() and pattern.search(path.read_text())] == []


def test_importing_does_nothing() -> None:
    """No client, no logging set-up: importing leaves the root logger untouched. (flows import Prefect, which does as it likes.)"""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for name in PACKAGES[:3] for path in (ROOT / name).rglob("*.py")]
    modules = [module.removesuffix(".__init__") for module in modules]
    code = f"import importlib, logging, threading\nfor m in {modules!r}: importlib.import_module(m)\nprint(logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_packages_are_flat_of_side_effects() -> None:
    for name in PACKAGES:
        for path in (ROOT / name).rglob("__init__.py"):
            assert path.read_text() == ""


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "tasks.footers, tasks.plan, tasks.estimate, tasks.summarize, tasks.results, tasks.verify, tasks.overlay",
            ("torch", "prefect", "distributed"),
        ),
        ("flows.segment", ("transformers",)),
    ],
)
def test_who_only_reads_or_sends_loads_no_model(modules: str, absent: tuple[str, ...]) -> None:
    """PyTorch and transformers take ten seconds to import: commands that read an output, and a run's own process, go without."""
    code = f"import sys, {modules}\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280, check=True)
    assert done.stdout.strip() == "[]"
