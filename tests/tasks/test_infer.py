"""What the model is asked, how often, and what a failing row costs its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from model.segmenter import Query, Segmentation
from schemas.rejects import RejectCode
from schemas.runs import RowRange, Shard
from schemas.settings import SegmentSettings
from tasks import infer as infer_module
from tasks.infer import infer
from tasks.read import Row
from tests.conftest import png
from tests.fakes import REVISION, FakeSegmenter

SETTINGS = SegmentSettings()
PNGS = [png(seed) for seed in range(4)]


class Recorder(FakeSegmenter):
    """Keeps what it was asked: per call, the number of images and the words."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def segment_many(self, images: Sequence[np.ndarray], queries: Sequence[Query]) -> list[Segmentation]:
        self.calls.append((len(images), tuple(query.object for query in queries)))
        return super().segment_many(images, queries)


def row(number: int, image: int = 0, query: str | None = None, **values: Any) -> Row:
    fields = {"image_uri": None, "spatial_refs": (), "mode": None, "carried": {}} | values
    return Row(row=number, row_id=f"r{number}", image_bytes=PNGS[image], query=f"thing {number}" if query is None else query, **fields)


def shard_of(rows: Sequence[Row], **values: Any) -> Shard:
    return Shard(
        shard_id="s", file="in.parquet", name="in.parquet", fingerprint="f", ranges=(RowRange(0, 0, len(rows)),),
        first_row=0, model_revision=REVISION, settings_hash=SETTINGS.settings_hash, **values,
    )  # fmt: skip


@given(images=st.lists(st.integers(0, 3), min_size=1, max_size=30), batch_rows=st.integers(1, 8))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=50)
def test_batches_are_bounded_and_answer_each_row_as_if_alone(images: list[int], batch_rows: int) -> None:
    rows = [row(number, image) for number, image in enumerate(images)]
    model = Recorder()
    answers = infer(rows, shard_of(rows), SETTINGS, model, batch_rows)
    assert answers.rejects == []
    assert [mask.row for mask in answers.masks] == rows
    sizes = [len(words) for _, words in model.calls]
    assert all(size == batch_rows for size in sizes[:-1])
    assert sizes[-1] <= batch_rows
    for mask, asked in zip(answers.masks, rows, strict=True):
        (alone,) = infer([asked], shard_of([asked]), SETTINGS, FakeSegmenter(), 1).masks
        assert (mask.image_id, mask.segmentation.rle) == (alone.image_id, alone.segmentation.rle)


def test_each_distinct_image_is_decoded_once_and_its_rows_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = infer_module.decode

    def record(data: bytes, settings: SegmentSettings) -> np.ndarray:
        decoded.append(data)
        return decode(data, settings)

    monkeypatch.setattr(infer_module, "decode", record)
    rows = [row(number, number % 2) for number in range(8)]
    model = Recorder()
    infer(rows, shard_of(rows), SETTINGS, model, 8)
    assert sorted(decoded) == sorted(PNGS[:2])
    assert model.calls == [(2, tuple(f"thing {number}" for number in (0, 2, 4, 6, 1, 3, 5, 7)))]


def test_only_the_row_the_model_fails_on_is_rejected() -> None:
    rows = [row(number, number % 2, "explode" if number == 3 else None) for number in range(6)]
    answers = infer(rows, shard_of(rows), SETTINGS, FakeSegmenter(), 4)
    assert [mask.row.row for mask in answers.masks] == [0, 1, 2, 4, 5]
    (reject,) = answers.rejects
    assert (reject.row.row, reject.code) == (3, RejectCode.MODEL_ERROR)
    assert reject.detail == "RuntimeError: this row is explosive"


@pytest.mark.parametrize("error", [MemoryError("no memory left"), torch.OutOfMemoryError("no memory left on the device")])
def test_the_machines_failures_end_the_shard(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def exhausted(*_: Any) -> list[Segmentation]:
        raise error

    model = FakeSegmenter()
    monkeypatch.setattr(model, "segment_many", exhausted)
    rows = [row(0), row(1)]
    with pytest.raises(type(error), match="no memory left"):
        infer(rows, shard_of(rows), SETTINGS, model, 4)


def test_a_store_that_cannot_be_reached_ends_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> bytes:
        raise ConnectionError("the store does not answer")

    monkeypatch.setattr(infer_module, "fetch", unreachable)
    rows = [Row(row=0, row_id="r", image_bytes=None, image_uri="a.png", query="x", spatial_refs=(), mode=None, carried={})]
    with pytest.raises(ConnectionError):
        infer(rows, shard_of(rows), SETTINGS, FakeSegmenter(), 4)


def test_rows_rejected_early_never_reach_the_model() -> None:
    rows = [row(0, mode="all"), row(1, query=" "), row(2), row(3, spatial_refs=((0.1, float("nan")),)), row(4, mode="")]
    model = Recorder()
    answers = infer(rows, shard_of(rows, duplicates=(2,)), SETTINGS, model, 4)
    assert [(reject.row.row, reject.code) for reject in answers.rejects] == [
        (0, RejectCode.UNSUPPORTED_MODE), (1, RejectCode.EMPTY_QUERY),
        (2, RejectCode.DUPLICATE_ROW_ID), (3, RejectCode.SPATIAL_REF_OUT_OF_RANGE),
    ]  # fmt: skip
    assert model.calls == [(1, ("thing 4",))]


class Failing(FakeSegmenter):
    """Raises the same error whatever it is asked."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def segment_many(self, images: Sequence[np.ndarray], queries: Sequence[Query]) -> list[Segmentation]:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), OSError("disk"), torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("device lost"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_is_the_machines_fault_rejects_no_row(error: Exception) -> None:
    rows = [row(0), row(1)]
    with pytest.raises(type(error)):
        infer(rows, shard_of(rows), SETTINGS, Failing(error), 8)


class Cramped(Recorder):
    """Has memory for two rows at once."""

    def segment_many(self, images: Sequence[np.ndarray], queries: Sequence[Query]) -> list[Segmentation]:
        if len(queries) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().segment_many(images, queries)


def test_a_batch_too_large_for_the_device_is_asked_in_halves() -> None:
    rows = [row(number, number // 3) for number in range(9)]
    model = Cramped()
    answers = infer(rows, shard_of(rows), SETTINGS, model, 9)
    assert [mask.row for mask in answers.masks] == rows
    assert sum(len(words) for _, words in model.calls) == 9, "each row was answered once"
