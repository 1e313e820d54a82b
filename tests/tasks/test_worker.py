"""The resident model of a worker process."""

from __future__ import annotations

import pickle
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from wordmask.model.hub.registry import resolve_model
from wordmask.model.segmenter import Segmenter
from wordmask.model.types import Query
from wordmask.schemas.settings import ModelSettings, RunSettings, SegmentSettings
from wordmask.tasks.context import ModelLock, ShardContext
from wordmask.tasks.worker import (
    BrokenDeviceError,
    NoModelError,
    ResidentModel,
    UnhealthyWorkerError,
    context_of,
    load_segmenter,
    resident_context,
    resident_name,
    translate_device_errors,
)

FACTORY = f"{__name__}:Family.make"


class Family:
    """Stands for a class with a classmethod that loads; keeps what it was called with."""

    revision = "r"

    def __init__(self, model: str, **settings: Any) -> None:
        self.asked = {"model": model, **settings}
        self.weights = object()

    def with_method(self, **method: Any) -> Family:
        if method["path_style"] == "smooth":
            raise ImportError("path_style = smooth: needs vtracer")
        other = Family(**(self.asked | method))
        other.weights = self.weights
        return other

    make = classmethod(lambda cls, model, **settings: cls(model, **settings))


class WorkerStub:
    """Takes plugins and lets them go as a Dask worker does."""

    name = "w"

    def __init__(self) -> None:
        self.plugins: dict[str, ResidentModel] = {}

    def add(self, plugin: ResidentModel) -> None:
        self.plugins[plugin.name] = plugin
        plugin.setup(self)

    def remove(self, plugin: ResidentModel) -> None:
        self.plugins.pop(plugin.name).teardown(self)

    def context(self, revision: str, segment: SegmentSettings) -> ShardContext:
        return context_of(self.plugins, resident_name(revision, ModelSettings(), segment), segment)


def test_the_model_is_made_with_the_settings_values() -> None:
    model = ModelSettings(model="folder", refiner="other", revision="main", device="cpu")
    made = load_segmenter(model, SegmentSettings(dtype="bfloat16", refiner_iterations=2), FACTORY)
    assert isinstance(made, Family)
    assert made.asked == {
        "model": "folder",
        "refiner": "other",
        "revision": "main",
        "device": "cpu",
        "dtype": "bfloat16",
        "refiner_iterations": 2,
        "early_stop": True,
        "grammar": True,
        "deterministic": False,
        "path_style": "exact",
    }


def test_a_model_is_resident_from_setup_to_teardown() -> None:
    dask, segment = WorkerStub(), SegmentSettings()
    plugin = ResidentModel(ModelSettings(revision="main"), segment, revision="r1", factory=FACTORY)
    with pytest.raises(NoModelError, match=r"register wordmask\.tasks\.worker\.ResidentModel"):
        dask.context("r1", segment)
    dask.add(plugin)
    assert dask.context("r1", segment) is dask.context("r1", segment)
    assert dask.context("r1", segment).segmenter.asked["revision"] == "r1", (
        "as planned, whatever branch was asked for"
    )
    dask.remove(plugin)
    with pytest.raises(NoModelError):
        dask.context("r1", segment)


def test_outside_of_a_dask_task_there_is_no_model() -> None:
    with pytest.raises(NoModelError, match=r"register wordmask\.tasks\.worker\.ResidentModel"):
        resident_context("r1", RunSettings(input="in", output="out"))


def test_runs_with_other_weights_on_one_worker_each_have_their_own_model() -> None:
    exact, rounded = SegmentSettings(dtype="float32"), SegmentSettings(dtype="bfloat16")
    plugins = [
        ResidentModel(ModelSettings(), segment, revision="r1", factory=FACTORY)
        for segment in (exact, rounded)
    ]
    dask = WorkerStub()
    for plugin in plugins:
        dask.add(plugin)
    contexts = [dask.context("r1", segment) for segment in (exact, rounded)]
    assert [context.segmenter.asked["dtype"] for context in contexts] == ["float32", "bfloat16"]
    assert contexts[0].model_lock is contexts[1].model_lock, "they share the device"
    dask.remove(plugins[1])
    assert dask.context("r1", exact) is contexts[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("early_stop", False),
        ("grammar", False),
        ("refiner_iterations", 5),
        ("deterministic", True),
    ],
)
def test_runs_that_differ_in_how_they_segment_share_the_weights(name: str, value: Any) -> None:
    one, other = SegmentSettings(), SegmentSettings.model_validate({name: value})
    dask = WorkerStub()
    for segment in (one, other):
        model = ResidentModel(ModelSettings(), segment, revision="r1", factory=FACTORY)
        if model.name not in dask.plugins:  # as Dask does with an idempotent plugin
            dask.add(model)
    contexts = [dask.context("r1", segment) for segment in (one, other, other)]
    assert len(dask.plugins) == 1
    assert [context.segmenter.asked[name] for context in contexts[1:]] == [value, value]
    assert contexts[0].segmenter.weights is contexts[1].segmenter.weights
    assert contexts[0].model_lock is contexts[1].model_lock
    assert contexts[1] is contexts[2]


def test_a_worker_that_lacks_what_one_run_needs_does_the_next_one() -> None:
    smooth, exact = SegmentSettings(path_style="smooth"), SegmentSettings()
    dask = WorkerStub()
    dask.add(ResidentModel(ModelSettings(), smooth, revision="r1", factory=FACTORY))
    with pytest.raises(NoModelError, match="cannot segment as set: ImportError: path_style"):
        dask.context("r1", smooth)
    assert dask.context("r1", exact).segmenter.asked["path_style"] == "exact"


def test_a_segmenter_of_another_method_has_the_same_weights_and_its_own_answers() -> None:
    segmenter = Segmenter.from_pretrained("demo", device="cpu")
    coarse = segmenter.with_method(refiner_iterations=0)
    assert coarse.model is segmenter.model
    image, query = np.full((32, 32, 3), 90, np.uint8), Query(object="a cat")
    fresh = Segmenter.from_pretrained("demo", device="cpu", refiner_iterations=0)
    assert coarse.segment_one(image, query) == fresh.segment_one(image, query)
    assert coarse.revision == segmenter.revision


@pytest.mark.parametrize("refiner", [None, "demo"])
def test_a_local_model_is_loaded_by_the_revision_of_its_content(
    refiner: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Located:
        """Finds its files as `Segmenter.from_pretrained` does, and reads none."""

        def __init__(
            self, model: str, *, refiner: str | None, revision: str | None, **_: Any
        ) -> None:
            self.revision = resolve_model(model, refiner=refiner, revision=revision).revision

    monkeypatch.setattr(Family, "make", Located)
    planned = resolve_model("demo", refiner=refiner).revision
    dask, segment = WorkerStub(), SegmentSettings()
    model = ModelSettings(refiner=refiner)
    dask.add(ResidentModel(model, segment, revision=planned, factory=FACTORY))
    assert dask.context(planned, segment).segmenter.revision == planned
    dask.add(ResidentModel(ModelSettings(), segment, revision="other", factory=FACTORY))
    with pytest.raises(NoModelError, match="its content is"):
        dask.context("other", segment)


def test_a_model_that_could_not_be_loaded_says_why_to_the_shard() -> None:
    dask, segment = WorkerStub(), SegmentSettings()
    dask.add(ResidentModel(ModelSettings(), segment, revision="r1", factory="tests.nowhere:made"))
    message = r"could not load the model: ModuleNotFoundError: .*tests\.nowhere.*install wordmask"
    with pytest.raises(NoModelError, match=message):
        dask.context("r1", segment)


def test_an_unhealthy_worker_says_which_it_is() -> None:
    for error, kind in (
        (NoModelError("none"), UnhealthyWorkerError),
        (torch.AcceleratorError("device lost"), BrokenDeviceError),
    ):
        with pytest.raises(kind) as caught, translate_device_errors():
            raise error
        error = pickle.loads(pickle.dumps(caught.value))
        assert (type(error), error.address) == (kind, platform.node())
        assert str(error).startswith(f"worker {platform.node()}: ")
    with pytest.raises(MemoryError), translate_device_errors():
        raise MemoryError


def test_one_shard_at_a_time_has_the_model_and_idle_is_what_lies_between() -> None:
    lock = ModelLock()
    inside, most = 0, 0
    idle: list[float] = []

    def work() -> None:
        nonlocal inside, most
        with lock.hold(time.perf_counter()) as waited:
            idle.append(waited)
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    assert most == 1
    assert sum(idle) < 0.02, (
        "the waits of three overlapped with another's turn, and that is no idling"
    )
    began = time.perf_counter()
    time.sleep(0.02)
    with lock.hold(began) as waited:
        assert waited >= 0.02, "it was wanted and free"
    with pytest.raises(ValueError, match="broken"), lock.hold(began):
        raise ValueError("broken")
    with lock.hold(time.perf_counter()):
        pass
