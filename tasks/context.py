"""What the shards of a worker process share: the model, the lock on it, open readers, and hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wordmask.model.types import Query, Segmentation
from wordmask.tasks.environment import environment_of
from wordmask.tasks.images.host_limits import HostLimits
from wordmask.tasks.table.row_groups import ReaderCache


class SegmenterLike(Protocol):
    """What a shard needs of a model, whichever engine runs it."""

    revision: str

    def check_query(self, object: str, spatial_refs: Sequence[Sequence[float]] = ()) -> None:
        """Raise QueryError for an expression or a reference that the model does not take."""

    def with_method(self, **method: Any) -> SegmenterLike:
        """Return a segmenter that segments in another way with the same weights.

        Args:
            method: `SegmentSettings.method`, without the dtype.

        Raises:
            ImportError: a library for it is not installed.
        """

    def stream(
        self,
        images: Iterable[tuple[NDArray[np.uint8], Sequence[tuple[int, Query]]]],
        /,
        rows: int,
    ) -> Iterable[tuple[int, Future[Segmentation]]]:
        """Answer the queries about each image, `rows` at a time, as they finish.

        Args:
            images: RGB images (height, width, 3), each with its queries and a tag for each of them.
            rows: queries that are decoded together.

        Returns:
            The tag of each query with its answer, in any order.
        """


class ModelLock:
    """Lets one shard at a time use the model, while others read before it and write after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_since = 0.0

    @contextmanager
    def hold(self, wanted_since: float) -> Generator[float]:
        """Wait for the model and keep it within the block.

        Args:
            wanted_since: when the shard began (`time.perf_counter`).

        Returns:
            The seconds in which the model was both free and wanted, but idle.
        """
        with self._lock:
            idle_since = max(wanted_since, self._free_since)
            try:
                yield max(0.0, time.perf_counter() - idle_since)
            finally:
                self._free_since = time.perf_counter()


@dataclass(frozen=True)
class ShardContext:
    """A model, the lock on it, readers that earlier shards left open, and requests to hosts.

    `environment`: packages and the device, as `ShardRecord` has them.

    A context outlives the runs that use it. A run's id and its trace are not part of it.
    """

    segmenter: SegmenterLike
    model_lock: ModelLock = field(default_factory=ModelLock)
    readers: ReaderCache = field(default_factory=ReaderCache)
    host_limits: HostLimits = field(default_factory=HostLimits)
    environment: Mapping[str, str] = field(default_factory=environment_of)
