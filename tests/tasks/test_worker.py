"""The resident model of a worker process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from schemas.settings import ModelSettings, SegmentSettings
from tasks import worker
from tasks.worker import ResidentModel, load_segmenter, own_device, resident_segmenter

FACTORY = f"{__name__}:Family.make"


class Family:
    """Stands for a class with a classmethod that loads; keeps what it was called with."""

    revision = "r"

    def __init__(self, model: str, **settings: Any) -> None:
        self.asked = {"model": model, **settings}

    make = classmethod(lambda cls, model, **settings: cls(model, **settings))


@pytest.fixture
def no_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_resident", {})


def test_the_model_is_made_with_the_settings_values() -> None:
    model = ModelSettings(model="folder", refiner="other", revision="main", device="cpu")
    made = load_segmenter(model, SegmentSettings(dtype="bfloat16", refiner_iterations=2), FACTORY)
    assert isinstance(made, Family)
    assert made.asked == {
        "model": "folder", "refiner": "other", "revision": "main", "device": "cpu", "dtype": "bfloat16", "refiner_iterations": 2,
        "grammar": True,
    }  # fmt: skip


@pytest.mark.usefixtures("no_resident")
def test_resident_from_setup_to_teardown() -> None:
    plugin = ResidentModel(ModelSettings(), SegmentSettings(), factory=FACTORY)
    with pytest.raises(RuntimeError, match=r"register tasks\.worker\.ResidentModel"):
        resident_segmenter()
    plugin.setup(SimpleNamespace(name="w"))
    assert resident_segmenter() is resident_segmenter()
    plugin.teardown(SimpleNamespace(name="w"))
    with pytest.raises(RuntimeError):
        resident_segmenter()


@pytest.mark.parametrize(
    ("count", "device", "name", "expected"),
    [
        (0, None, 0, None),
        (1, None, 3, None),
        (2, None, 3, "cuda:1"),
        (2, "cuda", "2", "cuda:0"),
        (2, "cuda:0", 1, "cuda:0"),
        (2, "cpu", 1, "cpu"),
        (2, None, "tcp://host:1", None),
    ],
)
def test_each_worker_takes_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch, count: int, device: str | None, name: int | str, expected: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert own_device(device, name) == expected
