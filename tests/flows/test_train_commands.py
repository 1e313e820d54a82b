"""The commands of single training stages, also in several processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wordmask.flows.cli.app import app

FEW = (
    *("--scenes", "shipped", "--steps", "1", "--questions", "1", "--rollouts", "2"),
    *("--learned", "2", "--eval-scenes", "1", "--max-tokens", "12"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `wordmask train rl`, by two processes that torchrun starts."""
    out = tmp_path_factory.mktemp("rl")
    command = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "wordmask.flows.cli.app"]
    options = ["train", "rl", "--init", "demo", "--out", str(out), "--threads", "1", *FEW]
    subprocess.run(
        [sys.executable, "-m", *command, *options],
        check=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return out


def test_processes_of_torchrun_train_one_model_and_keep_one_log(trained: Path) -> None:
    (row,) = csv.DictReader((trained / "log.csv").open())
    assert (row["step"], row["phase"]) == ("1", "rl")
    assert json.loads((trained / "settings.json").read_text())["max_tokens"] == 12


def test_a_trained_stage_is_exported_as_a_model(trained: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["train", "export", "--sft", str(trained), "--dest", str(tmp_path / "model")]
    )
    assert "M parameters in" in done.output
    assert json.loads((tmp_path / "model" / "card.json").read_text())["steps"] == {"rl": 1}


def test_a_stage_names_the_option_that_is_beyond_its_range() -> None:
    done = CliRunner().invoke(
        app, ["train", "rl", "--init", "demo", "--out", "x", "--rollouts", "1"]
    )
    assert done.exit_code == 2
    assert "--rollouts" in done.output
