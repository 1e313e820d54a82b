"""Whether rows or the model are to blame, decided by a row that is known to work."""

from __future__ import annotations

import re
import traceback
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from wordmask.model.types import Query
from wordmask.tasks.context import SegmenterLike
from wordmask.tasks.devices import ModelFailsError
from wordmask.tasks.infer.faults import may_be_the_models
from wordmask.tasks.rows import Row
from wordmask.tasks.telemetry.logs import clean

QUERY = Query(object="the square")
SIDE = 64  # of the image, in pixels
NUMBER = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)

Way = tuple[str, str]  # in which a row failed: the type of its error, and the text


class Canary:
    """Asks the model about a row that every sound model answers, where rows fail.

    Each answer that follows a failure shows as well that the model works. So the canary is asked
    only about failures that no answer has followed, and once for each way to fail.

    `suspects` counts these failures.
    """

    def __init__(self, segmenter: SegmenterLike) -> None:
        self._segmenter = segmenter
        self._cleared: set[Way] = set()  # the canary lived when rows had failed so
        self.suspects: Counter[Way] = Counter()

    def row_answered(self) -> None:
        """Note that the model works."""
        self.suspects.clear()

    def row_failed(self, row: Row, error: Exception) -> None:
        """Note that the model failed on a row by itself."""
        text = clean(str(error), [row.query])
        way = (type(error).__name__, NUMBER.sub("0", text))
        if way not in self._cleared:
            self.suspects[way] += 1

    def decide(self, *, alike: int = 1) -> None:
        """Ask the model, if so many rows failed in the same way.

        Raises:
            ModelFailsError: the model is to blame.
        """
        if max(self.suspects.values(), default=0) < alike:
            return
        (kind, text), rows = self.suspects.most_common(1)[0]
        self._require_answer(f"{rows} rows failed with {kind}: {text}")
        self._cleared.update(self.suspects)
        self.suspects.clear()

    def decide_about(self, error: Exception) -> None:
        """Ask the model, if it may be to blame for an error that ends the shard.

        Raises:
            ModelFailsError: it is.
        """
        if isinstance(error, ModelFailsError) or not may_be_the_models(error):
            return
        _free_memory_of(error)
        self._require_answer(f"the shard failed with {type(error).__name__}: {error}")

    def _require_answer(self, suspicion: str) -> None:
        try:
            _ask(self._segmenter)
        except Exception as error:
            raise ModelFailsError(
                f"{suspicion}; the model fails on a drawn square too, so no row is to blame"
                f" ({type(error).__name__}: {error})"
            ) from error


def _ask(segmenter: SegmenterLike) -> None:
    answers = [*segmenter.stream([(_image(), [(0, QUERY)])], rows=1)]
    for _, future in answers:
        future.result()
    if len(answers) != 1:
        raise RuntimeError(f"one query has {len(answers)} answers")


def _image() -> NDArray[np.uint8]:
    """Return a dark square on a light ground."""
    image = np.full((SIDE, SIDE, 3), 230, np.uint8)
    middle = slice(SIDE // 4, -SIDE // 4)
    image[middle, middle] = 40
    return image


def _free_memory_of(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: tensors on a device that may be full."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
