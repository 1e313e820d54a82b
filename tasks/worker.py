"""The resident model: loaded once per worker process, however many shards it works on."""

from __future__ import annotations

import importlib
import os
import platform
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import cv2
import torch
from distributed import Worker, WorkerPlugin, get_worker

from wordmask.model.runtime.devices import set_up_process
from wordmask.schemas.settings import ModelSettings, RunSettings, SegmentSettings
from wordmask.tasks.context import SegmenterLike, ShardContext
from wordmask.tasks.device_locks import own_device
from wordmask.tasks.devices import ModelFailsError, is_broken_device
from wordmask.tasks.environment import environment_of
from wordmask.tasks.telemetry import logs, traces

SEGMENTER = "wordmask.model.segmenter:Segmenter.from_pretrained"


class NoModelError(RuntimeError):
    """The model that a shard was planned with is not loaded in this worker."""


class UnhealthyWorkerError(RuntimeError):
    """The worker at an address fails, and would fail any other shard as well."""

    def __init__(self, reason: str, address: str) -> None:
        super().__init__(reason, address)  # so that it can be pickled

    @property
    def address(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return f"worker {self.address}: {self.args[0]}"


class BrokenDeviceError(UnhealthyWorkerError):
    """The worker's device or model does not work until the process is started again.

    The shard that it worked on may be to blame.
    """


@contextmanager
def translate_device_errors() -> Generator[None]:
    """Turn errors that any other shard would meet as well into those of an unhealthy worker."""
    try:
        yield
    except NoModelError as error:
        raise UnhealthyWorkerError(str(error), worker_address()) from error
    except ModelFailsError as error:
        raise BrokenDeviceError(str(error), worker_address()) from error
    except RuntimeError as error:
        if not is_broken_device(error):
            raise
        raise BrokenDeviceError(f"{type(error).__name__}: {error}", worker_address()) from error


def resident_context(revision: str, settings: RunSettings) -> ShardContext:
    """Return what the Dask worker of this task holds for a planned revision and settings.

    Raises:
        NoModelError: the worker holds no such model. The message says why.
    """
    try:
        plugins = get_worker().plugins
    except ValueError:  # not within a task
        plugins = {}
    segment = settings.segment
    if segment.deterministic:
        # PyTorch counts threads for each thread that asks, and this one may have served other runs.
        set_up_process(settings.model.device, deterministic=True)
    return context_of(plugins, resident_name(revision, settings.model, segment), segment)


def context_of(
    plugins: Mapping[str, WorkerPlugin], name: str, segment: SegmentSettings
) -> ShardContext:
    """Return the context of a model by its name among a worker's plugins.

    Raises:
        NoModelError: there is none, or it cannot segment as settings have it.
    """
    plugin = plugins.get(name)
    if not isinstance(plugin, ResidentModel) or plugin.loaded is None:
        raise NoModelError(
            "the worker has no model of this run; register wordmask.tasks.worker.ResidentModel on"
            " the cluster first"
        )
    if isinstance(plugin.loaded, Exception):
        raise NoModelError(f"the worker could not load the model: {_reason(plugin.loaded)}")
    try:
        return plugin.loaded.context(segment)
    except (ImportError, ValueError) as error:
        raise NoModelError(f"the worker cannot segment as set: {_reason(error)}") from error


def load_problem(
    name: str, segment: SegmentSettings, *, again: bool = False, dask_worker: Worker
) -> str | None:
    """Return why a worker cannot do the shards of a run, None if it can.

    Args:
        name: of the run's model.
        segment: how the run segments.
        again: try to load the model once more before.
        dask_worker: the worker; Dask gives it.
    """
    plugin = dask_worker.plugins.get(name)
    if again and isinstance(plugin, ResidentModel):
        plugin.load(dask_worker)
    try:
        context_of(dask_worker.plugins, name, segment)
    except NoModelError as error:
        return str(error)
    return None


def _reason(error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        reason += "; install wordmask on every worker, in the version that runs here"
    return reason


def resident_name(revision: str, model: ModelSettings, segment: SegmentSettings) -> str:
    """Return the name of the plugin that holds a model of a planned revision.

    Runs with other models may share a cluster: each finds its own. Runs share one that differ only
    in how they segment with its weights.
    """
    return f"wordmask {revision} dtype={segment.dtype} device={model.device or 'any'}"


def load_segmenter(
    model: ModelSettings, segment: SegmentSettings, factory: str = SEGMENTER
) -> SegmenterLike:
    """Make a segmenter with the values of settings.

    Args:
        model: which model, and its device.
        segment: how it segments.
        factory: what makes it, as "module:attribute.attribute".
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


class LoadedModel:
    """A model's weights, and a context for each way in which runs segment with them."""

    def __init__(self, base: ShardContext, segment: SegmentSettings) -> None:
        """Take the context that the model was loaded with, and the settings of its segmenter."""
        self.base = base
        self._contexts = {_way(segment): base}
        self._lock = threading.Lock()

    def context(self, segment: SegmentSettings) -> ShardContext:
        """Return the context of a way to segment. Raises as `SegmenterLike.with_method`."""
        way = _way(segment)
        with self._lock:
            if way not in self._contexts:
                segmenter = self.base.segmenter.with_method(**dict(way))
                self._contexts[way] = replace(self.base, segmenter=segmenter)
            return self._contexts[way]


def _way(segment: SegmentSettings) -> tuple[tuple[str, Any], ...]:
    """Return what settings say of how to segment, besides the weights."""
    return tuple((name, value) for name, value in segment.method.items() if name != "dtype")


class ResidentModel(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Loads the model when a worker process starts, and again when the process was restarted.

    The planned revision is what is loaded: a branch may have moved since, or be an older one in a
    worker's cache.
    """

    # A further run of the same model neither loads it again nor takes it from a run that uses it.
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
        self.name = resident_name(revision, model, segment)
        self.loaded: LoadedModel | Exception | None = None  # the error, if it could not be loaded

    def setup(self, worker: Worker) -> None:
        """Load the model for the shards of this worker.

        An error is kept rather than raised: Dask would end the run for the other workers too, and
        nobody would see the error of a worker that was restarted.
        """
        logs.set_up()
        traces.set_up()
        limit_threads(self.threads)
        self.load(worker)

    def load(self, worker: Worker) -> None:
        """Load the model onto the device of this process. `loaded` has what came of it."""
        try:
            device = own_device(self.model.device)
            model = self.model.model_copy(update={"device": device})
            # Plainly: a worker may lack what this run's way to segment needs, and do the next run.
            plain = SegmentSettings(dtype=self.segment.dtype)
            segmenter = load_segmenter(model, plain, self.factory)
        except Exception as error:
            self.loaded = error
        else:
            context = _share(worker, segmenter, device)
            self.loaded = LoadedModel(context, plain)

    def teardown(self, worker: Worker) -> None:
        """Let go of the model, and send the traces that were not sent yet."""
        if isinstance(self.loaded, LoadedModel):
            self.loaded.base.readers.close()
        self.loaded = None
        traces.flush()


def _share(worker: Worker, segmenter: SegmenterLike, device: str | None) -> ShardContext:
    """Return a context with the lock of the worker's other models: they share its device."""
    environment = environment_of(device)
    for plugin in worker.plugins.values():
        if isinstance(plugin, ResidentModel) and isinstance(plugin.loaded, LoadedModel):
            base = plugin.loaded.base
            return replace(base, segmenter=segmenter, environment=environment)
    return ShardContext(segmenter, environment=environment)


def worker_name() -> str:
    """Return the name of this task's Dask worker, elsewhere that of the machine."""
    try:
        return str(get_worker().name)
    except ValueError:
        return platform.node()


def worker_address() -> str:
    """Return the address of this task's Dask worker, elsewhere the name of the machine."""
    try:
        return str(get_worker().address)
    except ValueError:
        return platform.node()


def limit_threads(threads: int | None) -> None:
    """Let the numeric libraries use so many threads, so that workers leave each other theirs."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
