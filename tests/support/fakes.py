"""A model that answers at once and always the same, for tests of what surrounds the model."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wordmask.model.hub.registry import resolve_model
from wordmask.model.masks import rle
from wordmask.model.masks.trace import trace
from wordmask.model.types import Query, QueryError, Segmentation
from wordmask.schemas import method
from wordmask.schemas.rejects import RejectCode

REVISION = "fake-1"
FACTORY = "tests.support.fakes:FakeSegmenter"  # as a flow is given it
OLDER_FACTORY = "tests.support.fakes:OlderCode"
BROKEN_GPU = "tests.support.fakes:BrokenGpu"
UNLOADABLE = "tests.support.fakes:Unloadable"
BAD_PROCESS = "WORDMASK_TEST_BAD_PROCESS"  # variable that names a file, see `is_bad_process`
NEWEST_METHOD = method.METHOD_VERSION


class FakeSegmenter:
    """An ellipse whose place follows from the image and the words.

    Words with a meaning: "explode" raises, "absent" is absent, "die:PATH" kills the process unless
    the file PATH is there (it is made first, so the second try lives), "kill" kills it always,
    "slowly" takes half a second, "hog:PATH" takes a gigabyte unless the file PATH is there.
    """

    def __init__(self, model: str | None = None, **_settings: Any) -> None:
        # In a flow it stands in for a model that was planned with.
        self.revision = REVISION if model is None else resolve_model(model).revision

    def with_method(self, **_method: Any) -> FakeSegmenter:
        return self

    def check_query(self, object: str, spatial_refs: Sequence[Sequence[float]] = ()) -> None:
        if not object.strip():
            raise QueryError(RejectCode.EMPTY_QUERY, f"query = {object!r}: has no words")
        if len(object.split()) > 64:
            raise QueryError(
                RejectCode.QUERY_TOO_LONG,
                f"query has {len(object.split())} words, more than the limit of 64; shorten it",
            )
        for ref in spatial_refs:
            if len(ref) not in (2, 4):
                raise QueryError(RejectCode.BAD_SPATIAL_REF, f"{list(ref)} has {len(ref)} numbers")
            if not all(0 <= value <= 1 for value in ref):
                raise QueryError(RejectCode.SPATIAL_REF_OUT_OF_RANGE, f"{list(ref)} leaves 0..1")

    def stream(
        self, asked: Iterable[tuple[np.ndarray, Sequence[tuple[int, Query]]]], rows: int
    ) -> Iterator[tuple[int, Future[Segmentation]]]:
        for image, queries in asked:
            for tag, query in queries:
                future: Future[Segmentation] = Future()
                future.set_result(_answer(image, query.object))
                yield tag, future


class OlderCode(FakeSegmenter):
    """That of a worker whose code has the version before of the method."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(model, **settings)
        use_older_code()


def use_older_code() -> None:
    """Give this process the version before of the method."""
    method.METHOD_VERSION = NEWEST_METHOD - 1


class BrokenGpu(FakeSegmenter):
    """Every call fails in the first process that makes one."""

    def stream(
        self, asked: Iterable[tuple[np.ndarray, Sequence[tuple[int, Query]]]], rows: int
    ) -> Iterator[tuple[int, Future[Segmentation]]]:
        if is_bad_process():
            raise RuntimeError(
                "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"
            )
        yield from super().stream(asked, rows)


class Unloadable(FakeSegmenter):
    """It cannot be made in the first process that tries."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(model, **settings)
        if is_bad_process():
            raise OSError("the weights are cut short")


def is_bad_process() -> bool:
    """Return whether this process was the first to ask, of all with the same environment."""
    path = Path(os.environ[BAD_PROCESS])
    own = str(os.getpid())
    with suppress(FileExistsError), path.open("x") as file:
        file.write(own)
    return path.read_text() == own


class Counting(FakeSegmenter):
    """Keeps the words that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def stream(self, asked: Any, rows: int) -> Any:
        for image, queries in asked:
            self.asked += [query.object for _, query in queries]
            yield from super().stream([(image, queries)], rows)


class Gossip(FakeSegmenter):
    """Its errors tell what they should not: the row's words, its image, a credential.

    "unspeakable" is the row's fault, "unbearable" the machine's.
    """

    def stream(
        self, asked: Iterable[tuple[np.ndarray, Sequence[tuple[int, Query]]]], rows: int
    ) -> Iterator[tuple[int, Future[Segmentation]]]:
        for image, queries in asked:
            for tag, query in queries:
                told = (
                    f"{query.object!r} about {image.tobytes()[:9]!r} with"
                    f" {os.environ.get('AWS_SECRET_ACCESS_KEY')}"
                )
                if "unspeakable" in query.object:
                    raise RuntimeError(told)
                if "unbearable" in query.object:
                    raise MemoryError(told)
                yield from super().stream([(image, [(tag, query)])], rows)


def _answer(image: np.ndarray, words: str) -> Segmentation:
    if words == "explode":
        raise RuntimeError("this row is explosive")
    if words == "out of memory":
        raise MemoryError("no memory left")
    if words.startswith("die:") and not Path(words[4:]).exists():
        Path(words[4:]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if words == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if words.startswith("hog:") and not Path(words[4:]).exists():
        Path(words[4:]).touch()
        hoard = np.ones(1 << 27)  # 8 bytes each
        time.sleep(10 * hoard[0])
    if words == "slowly":
        time.sleep(0.5)
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    if words != "absent":
        digest = hashlib.sha256(np.ascontiguousarray(image))
        digest.update(words.encode())
        a, b, c = digest.digest()[:3]
        cv2.ellipse(
            mask,
            (a * width // 256, b * height // 256),
            (2 + width // 4, 2 + height // 4),
            c,
            0,
            360,
            1,
            -1,
        )
    x, y, w, h = cv2.boundingRect(mask)
    return Segmentation(
        status="absent" if words == "absent" else "mask",
        rle=dict(rle.encode(mask)),
        bbox=(x, y, w, h),
        area=int(mask.sum()),
        path=trace(mask),
        coarse_path="M 0 0 L 1 0 1 1 z",
        coarse_bbox=(0.5, 0.5, 0.5, 0.5),
        predicted_iou=0.9,
        path_logprob=-0.1,
        coarse_refined_iou=0.8,
        iteration_stability=1.0,
        trust=0.85,
        refined=True,
        salvaged=False,
        truncated=False,
        path_problem=None,
        n_path_tokens=9,
    )
