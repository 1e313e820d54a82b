"""Rows of a shard in memory, and their way through checks and the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.tables import png
from wordmask.model.types import Query, Segmentation
from wordmask.schemas.method import METHOD_VERSION
from wordmask.schemas.runs import RowRange, Shard
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.infer.turns import end_rows
from wordmask.tasks.rows import Row, ShardResult

# What a segmenter's `stream` takes and gives.
Asked = Iterable[tuple[np.ndarray, Sequence[tuple[int, Query]]]]
Answered = Iterator[tuple[int, Future[Segmentation]]]

SETTINGS = SegmentSettings()
PNGS = [png(seed) for seed in range(4)]


def row_of(position: int, image: int = 0, query: str | None = None, **values: Any) -> Row:
    """Return a row about one of `PNGS`. Its query names its position unless given."""
    if query is None:
        query = f"thing {position}"
    fields = {
        "row_id": f"r{position}",
        "image_bytes": PNGS[image],
        "image_uri": None,
        "query": query,
        "spatial_refs": (),
        "mode": None,
        "carried": {},
    }
    return Row(position=position, **(fields | values))


def shard_of(rows: Sequence[Row], **values: Any) -> Shard:
    """Return the shard of these rows."""
    return Shard(
        shard_id="s",
        file="in.parquet",
        name="in.parquet",
        fingerprint="f",
        ranges=(RowRange(0, 0, len(rows)),),
        first_row=0,
        model_revision=REVISION,
        method_version=METHOD_VERSION,
        settings_hash=SETTINGS.settings_hash,
        **values,
    )


def infer(
    rows: Sequence[Row],
    model: FakeSegmenter,
    batch_rows: int,
    *,
    settings: SegmentSettings = SETTINGS,
    duplicates: tuple[int, ...] = (),
) -> ShardResult:
    """Check rows and give those that are sound to the model."""
    shard = shard_of(rows, duplicates=duplicates)
    run = RunSettings(input="in.parquet", output="out", segment=settings, batch_rows=batch_rows)
    return end_rows(rows, shard, run, ShardContext(model))


class Recorder(FakeSegmenter):
    """Keeps what it was asked: per call, the batch size and the queries about each image."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, list[tuple[str, ...]]]] = []

    def stream(self, asked: Asked, rows: int) -> Answered:
        words: list[tuple[str, ...]] = []
        self.calls.append((rows, words))

        def noted() -> Asked:
            for image, queries in asked:
                words.append(tuple(query.object for _, query in queries))
                yield image, queries

        return super().stream(noted(), rows)
