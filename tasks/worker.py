"""The resident model: loaded once per worker process, however many shards it works on."""

from __future__ import annotations

import importlib
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from distributed import Worker, WorkerPlugin, get_worker
from numpy.typing import NDArray

from wordmask.model.types import Query, Segmentation
from wordmask.schemas.settings import ModelSettings, SegmentSettings
from wordmask.tasks.telemetry import logs, traces

SEGMENTER = "wordmask.model.segmenter:Segmenter.from_pretrained"


class SegmenterLike(Protocol):
    """What a shard needs of a model."""

    revision: str

    def check_query(self, object: str, spatial_refs: Sequence[Sequence[float]] = ()) -> None: ...

    def stream(
        self, asked: Iterable[tuple[NDArray[np.uint8], Sequence[tuple[int, Query]]]], rows: int
    ) -> Iterable[tuple[int, Future[Segmentation]]]: ...


class ModelLock:
    """One shard at a time has the model, while others read before it and write after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_since = 0.0

    @contextmanager
    def taken(self, wanted: float) -> Iterator[float]:
        """Wait for the turn. Gives the seconds that the model stood idle since it was free and
        `wanted` (`time.perf_counter`).
        """
        with self._lock:
            try:
                yield max(0.0, time.perf_counter() - max(wanted, self._free_since))
            finally:
                self._free_since = time.perf_counter()


model_lock = ModelLock()  # of this process


class NoModelError(RuntimeError):
    """The model that a shard was planned with is not loaded in this worker."""


class UnhealthyWorkerError(RuntimeError):
    """The worker at an address fails, and would fail any other shard as well."""

    def __init__(self, what: str, address: str) -> None:
        super().__init__(what, address)  # so that it can be pickled

    @property
    def address(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return f"worker {self.address}: {self.args[0]}"


class BrokenDeviceError(UnhealthyWorkerError):
    """Its device does not work any more, until the process is started again. What it worked on may
    be to blame.
    """


@contextmanager
def translate_device_errors() -> Iterator[None]:
    """Errors that leave it say so if the worker is unfit."""
    try:
        yield
    except NoModelError as error:
        raise UnhealthyWorkerError(str(error), worker_address()) from error
    except torch.AcceleratorError as error:
        raise BrokenDeviceError(f"{type(error).__name__}: {error}", worker_address()) from error


# What `ResidentModel` loaded, or why it could not, by its name.
_resident: dict[str, SegmenterLike | Exception] = {}


def resident_segmenter(revision: str, segment: SegmentSettings) -> SegmenterLike:
    """The model of this process for a planned revision and settings. Raises NoModelError if there
    is none; it says why.
    """
    found = _resident.get(resident_name(revision, segment))
    if found is None:
        raise NoModelError(
            "the worker has no model of this run; register tasks.worker.ResidentModel on the"
            " cluster first"
        )
    if isinstance(found, Exception):
        raise NoModelError(f"the worker could not load the model: {type(found).__name__}: {found}")
    return found


def resident_name(revision: str, segment: SegmentSettings) -> str:
    """Runs with other models may share a cluster: each finds its own. Of the settings, only those a
    model is made with count.
    """
    return " ".join(
        ["wordmask", revision, *(f"{name}={value}" for name, value in segment.method.items())]
    )


def load_segmenter(
    model: ModelSettings, segment: SegmentSettings, factory: str = SEGMENTER
) -> SegmenterLike:
    """Make a segmenter through `factory`, "module:attribute.attribute", called with the settings'
    values.
    """
    module, _, path = factory.partition(":")
    make: Any = importlib.import_module(module)
    for name in path.split("."):
        make = getattr(make, name)
    segmenter: SegmenterLike = make(
        model.model,
        refiner=model.refiner,
        revision=model.revision,
        device=model.device,
        **segment.method,
    )
    return segmenter


class ResidentModel(WorkerPlugin):  # type: ignore[misc]
    """Loads the model when a worker process starts, and again when it was restarted. `revision` is
    the planned one, and what is loaded: a branch may have moved since, or be an older one in a
    worker's cache."""

    # a further run of the same model neither loads it again nor takes it from a run that is using
    # it
    idempotent = True

    def __init__(
        self,
        model: ModelSettings,
        segment: SegmentSettings,
        *,
        revision: str,
        threads: int | None = None,
        factory: str = SEGMENTER,
    ) -> None:
        self.model = model.model_copy(update={"revision": revision})
        self.segment = segment
        self.threads = threads
        self.factory = factory
        self.name = resident_name(revision, segment)

    def setup(self, worker: Worker) -> None:
        logs.set_up()
        traces.set_up()
        limit_threads(self.threads)
        model = self.model.model_copy(update={"device": own_device(self.model.device, worker.name)})
        try:
            _resident[self.name] = load_segmenter(model, self.segment, self.factory)
        except Exception as error:
            _resident[self.name] = error  # a restarted worker's error would be seen by nobody
            raise

    def teardown(self, worker: Worker) -> None:
        _resident.pop(self.name, None)
        traces.flush()


def worker_name() -> str:
    """Of the Dask worker that this is a task of; elsewhere this machine's."""
    try:
        return str(get_worker().name)
    except ValueError:
        return platform.node()


def worker_address() -> str:
    """Of the Dask worker that this is a task of; elsewhere this machine's name."""
    try:
        return str(get_worker().address)
    except ValueError:
        return platform.node()


def own_device(device: str | None, worker_name: Any) -> str | None:
    """The GPU of a worker on a machine with several, by the number that is its name; else the
    device as it was told.
    """
    count = torch.cuda.device_count()
    if count < 2 or device not in (None, "cuda") or not str(worker_name).isdigit():
        return device
    return f"cuda:{int(worker_name) % count}"


def limit_threads(threads: int | None) -> None:
    """Let the numeric libraries use so many threads, so that workers side by side do not get in
    each other's way.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
