"""Metrics of GPUs, and metrics that cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wordmask.tasks.telemetry import metrics


def test_gpu_memory_and_use_are_metrics_where_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def utilization(gpu: int) -> int:
        if gpu:
            raise ModuleNotFoundError("nvidia-ml-py is not installed")
        return 75

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda gpu: (10 + gpu, 100),
        "max_memory_allocated": lambda gpu: 80 + gpu,
        "utilization": utilization,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    samples = [sample for metric in metrics._Gpus().collect() for sample in metric.samples]
    found = {
        (sample.name, sample.labels["gpu"], sample.labels.get("what")): sample.value
        for sample in samples
    }
    assert found["wordmask_gpu_memory_bytes", "1", "used"] == 89
    assert found["wordmask_gpu_memory_bytes", "0", "peak"] == 80
    assert [found.get(("wordmask_gpu_busy_share", gpu, None)) for gpu in "01"] == [0.75, None]


@pytest.mark.parametrize(
    "fault", [OSError("No space left on device"), torch.AcceleratorError("device lost")]
)
def test_metrics_that_cannot_be_written_end_nothing(
    fault: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise fault

    monkeypatch.setenv("WORDMASK_METRICS_DIR", str(tmp_path / "metrics"))
    monkeypatch.setattr(metrics, "write_to_textfile", broken)
    for _ in range(3):
        metrics.save("0")
    messages = [record.message for record in caplog.records if record.name == "wordmask"]
    assert messages == ["metrics not written"]
