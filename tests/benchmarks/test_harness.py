"""The harness itself: rounds are fair, targets say what they mean, JSON is alone on stdout."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch

from tests.benchmarks.harness import Paired, Report, Target, main, paired

REPORT = Report(
    {"speed": np.float32(2), "steps": [{"step": "one", "ms": 0.5}]},
    [Target("fast", 39.5, at_least=40), Target("small", 2, at_most=2)],
)


def test_functions_take_turns_and_the_warm_up_is_not_timed() -> None:
    calls: list[str] = []
    found = paired({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2)
    assert "".join(calls) == "ba" + "ab" + "ba"
    assert {name: len(times) for name, times in found.seconds.items()} == {"a": 2, "b": 2}


def test_the_ratio_is_within_rounds() -> None:
    found = Paired({"slow": [4, 40, 6], "fast": [1, 10, 2]})
    assert (found.ratio("slow", "fast"), found.median("slow")) == (4, 6)


def test_a_target_has_one_limit() -> None:
    assert [target.met for target in REPORT.targets] == [False, True]
    for limits in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ValueError, match="either"):
            Target("odd", 1, **limits)


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of this process keep their threads."""
    monkeypatch.setattr(torch, "set_num_threads", int)
    monkeypatch.setattr(cv2, "setNumThreads", int)


def run(quick: bool) -> Report:
    """Print, as libraries do."""
    print("quick" if quick else "long")
    return REPORT


def test_json_is_alone_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", "--quick", "--json"])
    main("speed", run)
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (list(found), err) == (["name", "machine", "results", "targets"], "quick\n")
    assert found["results"] == {"speed": 2, "steps": [{"step": "one", "ms": 0.5}]}
    assert found["targets"][0] == {
        "name": "fast",
        "value": 39.5,
        "comparison": ">=",
        "target": 40,
        "met": False,
    }


def test_a_missed_target_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed"])
    main("speed", run)
    assert capsys.readouterr().out.count("MISSED") == 1
