"""What all stages share: the log, the means of metrics, and the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from wordmask.model.train.log import CsvLog, RunningMeans
from wordmask.model.train.loop import warmup_cosine


def test_a_log_forgets_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path, columns = tmp_path / "log.csv", ("step", "reward")
    with CsvLog(path, columns, after=0) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "reward": step / 10})
    with CsvLog(path, columns, after=2) as log:
        log.write({"step": 3, "reward": 0.5})
    assert path.read_text().split() == ["step,reward", "1,0.1", "2,0.2", "3,0.5"]


def test_a_metric_that_a_step_has_not_is_nan(tmp_path: Path) -> None:
    with CsvLog(tmp_path / "log.csv", ("step", "phase", "patch", "token"), after=0) as log:
        log.write({"step": 50, "phase": "vision", "patch": 1.23456789})
    assert (tmp_path / "log.csv").read_text().split() == [
        "step,phase,patch,token",
        "50,vision,1.2346,nan",
    ]


def test_a_log_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("vision,50,s_per_step=0.9,patch=1.7\n")
    with pytest.raises(ValueError, match="train into a new folder"):
        CsvLog(tmp_path / "log.csv", ("step", "patch"), after=50)


def test_means_are_over_the_steps_that_have_the_metric() -> None:
    means = RunningMeans()
    means.add({"reward": 1.0})
    means.add({"reward": 2.0, "eval_iou": 0.5})
    assert (means.steps, means.take()) == (2, {"reward": 1.5, "eval_iou": 0.5})
    assert (means.steps, means.take()) == (0, {})


def test_the_rate_rises_over_the_warm_up_and_falls_to_its_floor() -> None:
    options = {"peak": 2.0, "steps": 100, "floor": 0.1}
    assert warmup_cosine(0, warmup=4, **options) == pytest.approx(0.5, rel=1e-3)
    assert warmup_cosine(50, warmup=4, **options) == pytest.approx(2 * 0.55)
    assert warmup_cosine(100, warmup=4, **options) == pytest.approx(0.2)
    assert warmup_cosine(500, warmup=4, **options) == pytest.approx(0.2)
