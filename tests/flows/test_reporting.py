"""What a run says while it is under way."""

from __future__ import annotations

import pytest

from wordmask.flows.cli import console
from wordmask.flows.reporting import Progress, ProgressReporter


def test_workers_that_get_no_shards_are_counted_and_each_is_named_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(rows=3)
    with console.progress(json=False) as on_progress:
        reporter = ProgressReporter(progress, on_progress)
        for address in ("tcp://a:1", "tcp://b:2", "tcp://a:1"):
            reporter.name_unfit(address, "RuntimeError: [CUDA] broken")
    assert "workers unfit: 2" in str(progress)
    told = "".join(capsys.readouterr().err.split())
    for address in ("tcp://a:1", "tcp://b:2"):
        assert told.count(f"worker{address}getsnoshards:RuntimeError:[CUDA]broken") == 1
