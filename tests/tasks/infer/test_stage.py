"""What the model is asked, how often, and what a failing row costs its neighbours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.tables import png
from wordmask.model.types import Query, Segmentation
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import RowRange, Shard
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.images.decode import decode
from wordmask.tasks.infer import images as images_module
from wordmask.tasks.infer import stream
from wordmask.tasks.infer.checks import check_rows
from wordmask.tasks.infer.stage import infer_rows
from wordmask.tasks.rows import Row, ShardResult

Asked = Iterable[tuple[np.ndarray, Sequence[tuple[int, Query]]]]
Answered = Iterator[tuple[int, Future[Segmentation]]]
SETTINGS = SegmentSettings()
PNGS = [png(seed) for seed in range(4)]


class Recorder(FakeSegmenter):
    """Keeps what it was asked: per call, how many rows at a time, and the words about each
    image.
    """

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


def row(number: int, image: int = 0, query: str | None = None, **values: Any) -> Row:
    fields = {"image_uri": None, "spatial_refs": (), "mode": None, "carried": {}} | values
    return Row(
        position=number,
        row_id=f"r{number}",
        image_bytes=PNGS[image],
        query=f"thing {number}" if query is None else query,
        **fields,
    )


def shard_of(rows: Sequence[Row], **values: Any) -> Shard:
    return Shard(
        shard_id="s",
        file="in.parquet",
        name="in.parquet",
        fingerprint="f",
        ranges=(RowRange(0, 0, len(rows)),),
        first_row=0,
        model_revision=REVISION,
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
    """Check the rows and give those that are sound to the model."""
    shard = shard_of(rows, duplicates=duplicates)
    run = RunSettings(input="in.parquet", output="out", segment=settings, batch_rows=batch_rows)
    sound, unsound = check_rows(rows, shard, model)
    return infer_rows(sound, shard, run, ShardContext(model)).including(unsound)


@given(images=st.lists(st.integers(0, 3), min_size=1, max_size=30), batch_rows=st.integers(1, 8))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=50)
def test_one_stream_answers_each_row_as_if_alone(images: list[int], batch_rows: int) -> None:
    rows = [row(number, image) for number, image in enumerate(images)]
    model = Recorder()
    answers = infer(rows, model, batch_rows)
    assert answers.rejects == ()
    assert [mask.row for mask in answers.masks] == rows
    assert [at_once for at_once, _ in model.calls] == [batch_rows]
    for mask, asked in zip(answers.masks, rows, strict=True):
        (alone,) = infer([asked], FakeSegmenter(), 1).masks
        assert (mask.image_id, mask.segmentation.rle) == (alone.image_id, alone.segmentation.rle)


def test_each_distinct_image_is_decoded_once_and_its_rows_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []
    decode = images_module.decode

    def record(data: bytes, settings: SegmentSettings) -> np.ndarray:
        decoded.append(data)
        return decode(data, settings)

    monkeypatch.setattr(images_module, "decode", record)
    rows = [row(number, number % 2) for number in range(8)]
    model = Recorder()
    infer(rows, model, 8)
    assert sorted(decoded) == sorted(PNGS[:2])
    assert model.calls == [
        (
            8,
            [
                tuple(f"thing {number}" for number in numbers)
                for numbers in ((0, 2, 4, 6), (1, 3, 5, 7))
            ],
        )
    ]


@pytest.mark.parametrize("bad", [{3}, {0}, {5}, {1, 2}, set(range(6))])
def test_only_the_rows_the_model_fails_on_are_rejected(bad: set[int]) -> None:
    rows = [row(number, number % 2, "explode" if number in bad else None) for number in range(6)]
    answers = infer(rows, FakeSegmenter(), 4)
    assert [mask.row.position for mask in answers.masks] == [
        number for number in range(6) if number not in bad
    ]
    assert [reject.row.position for reject in answers.rejects] == sorted(bad)
    assert {(reject.code, reject.detail) for reject in answers.rejects} == {
        (RejectCode.MODEL_ERROR, "RuntimeError: this row is explosive")
    }


class Greedy(FakeSegmenter):
    """Takes all it is given before it answers anything, and keeps how many bytes that were: images,
    and masks of their rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[int] = []

    def stream(self, asked: Asked, rows: int) -> Answered:
        given = list(asked)
        self.held.append(
            sum(image.nbytes + len(queries) * image.nbytes // 3 for image, queries in given)
        )
        yield from super().stream(given, rows)


@given(
    images=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    most=st.integers(1, 12),
    bad=st.sets(st.integers(0, 29), max_size=2),
)
@hypothesis_settings(derandomize=True, deadline=None, max_examples=50)
def test_the_model_is_given_no_more_than_there_is_room_for_and_in_the_end_all(
    images: list[int], most: int, bad: set[int]
) -> None:
    rows = [
        row(number, image, "explode" if number in bad else None)
        for number, image in enumerate(images)
    ]
    one = decode(PNGS[0], SETTINGS).nbytes
    model = Greedy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "MAX_BYTES", most * one)
        answers = infer(rows, model, 4)
    assert max(model.held) <= max(most * one, one + one // 3), "a row by itself is always taken"
    assert [reject.row.position for reject in answers.rejects] == sorted(
        bad & set(range(len(rows)))
    )
    assert [mask.row.position for mask in answers.masks] == [
        number for number in range(len(rows)) if number not in bad
    ]


class Broken(FakeSegmenter):
    """Its second answer is a failure beside the model."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def stream(self, asked: Asked, rows: int) -> Answered:
        for tag, future in super().stream(asked, rows):
            if tag == 1:
                future = Future()
                future.set_exception(self.error)
            yield tag, future


def test_a_row_that_fails_beside_the_model_is_rejected_alone() -> None:
    rows = [row(number) for number in range(3)]
    answers = infer(rows, Broken(ValueError("no such path")), 4)
    assert [mask.row.position for mask in answers.masks] == [0, 2]
    assert [(reject.row.position, reject.detail) for reject in answers.rejects] == [
        (1, "ValueError: no such path")
    ]
    with pytest.raises(MemoryError):
        infer(rows, Broken(MemoryError()), 4)


@pytest.mark.parametrize(
    "error", [MemoryError("no memory left"), torch.OutOfMemoryError("no memory left on the device")]
)
def test_the_machines_failures_end_the_shard(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_: Any, **__: Any) -> Answered:
        raise error

    model = FakeSegmenter()
    monkeypatch.setattr(model, "stream", exhausted)
    rows = [row(0), row(1)]
    with pytest.raises(type(error), match="no memory left"):
        infer(rows, model, 4)


def test_a_store_that_cannot_be_reached_ends_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> bytes:
        raise ConnectionError("the store does not answer")

    monkeypatch.setattr(images_module, "image_bytes", unreachable)
    rows = [
        Row(
            position=0,
            row_id="r",
            image_bytes=None,
            image_uri="a.png",
            query="x",
            spatial_refs=(),
            mode=None,
            carried={},
        )
    ]
    with pytest.raises(ConnectionError):
        infer(rows, FakeSegmenter(), 4)


@pytest.mark.parametrize("part", ["image_bytes", "decode"])
def test_what_nobody_thought_of_costs_the_rows_of_one_image(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(images_module, part)

    def odd(what: Any, *rest: Any) -> Any:
        if PNGS[1] in (what, getattr(what, "image_bytes", None)):
            raise TypeError("about thing 1: not a number")
        return real(what, *rest)

    monkeypatch.setattr(images_module, part, odd)
    rows = [row(number, number % 2) for number in range(4)]
    answers = infer(rows, FakeSegmenter(), 4)
    assert [mask.row.position for mask in answers.masks] == [0, 2]
    found = [(reject.row.position, reject.code, reject.detail) for reject in answers.rejects]
    assert found == [
        (number, RejectCode.IMAGE_UNREADABLE, "TypeError: about ***: not a number")
        for number in (1, 3)
    ]


def test_a_scheme_that_nobody_knows_is_the_rows_own_fault() -> None:
    rows = [replace(row(0), image_bytes=None, image_uri="nonsense://x/a.png"), row(1)]
    settings = SegmentSettings(allow_roots=("nonsense://",))
    answers = infer(rows, FakeSegmenter(), 4, settings=settings)
    assert [(reject.row.position, reject.code) for reject in answers.rejects] == [
        (0, RejectCode.IMAGE_UNREADABLE)
    ]
    assert "Protocol not known: nonsense" in answers.rejects[0].detail


def test_rows_rejected_early_never_reach_the_model() -> None:
    rows = [
        row(0, mode="all"),
        row(1, query=" "),
        row(2),
        row(3, spatial_refs=((0.1, float("nan")),)),
        row(4, mode=""),
    ]
    model = Recorder()
    answers = infer(rows, model, 4, duplicates=(2,))
    assert [(reject.row.position, reject.code) for reject in answers.rejects] == [
        (0, RejectCode.UNSUPPORTED_MODE),
        (1, RejectCode.EMPTY_QUERY),
        (2, RejectCode.DUPLICATE_ROW_ID),
        (3, RejectCode.SPATIAL_REF_OUT_OF_RANGE),
    ]
    assert model.calls == [(4, [("thing 4",)])]


class Failing(FakeSegmenter):
    """Raises the same error whatever it is asked."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def stream(self, asked: Asked, rows: int) -> Answered:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("disk"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("device lost"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_the_machines_fault_rejects_no_row(error: Exception) -> None:
    rows = [row(0), row(1)]
    with pytest.raises(type(error)):
        infer(rows, Failing(error), 8)


class Cramped(FakeSegmenter):
    """Has memory for two rows at once, and finds out after the first answer."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once: list[int] = []
        self.answered: list[int] = []

    def stream(self, asked: Asked, rows: int) -> Answered:
        self.at_once.append(rows)
        for place, (tag, future) in enumerate(super().stream(asked, rows)):
            if rows > 2 and place > 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.answered.append(tag)
            yield tag, future


def test_where_the_device_has_too_little_memory_half_as_many_rows_are_decoded_at_a_time() -> None:
    rows = [row(number, number // 3) for number in range(9)]
    model = Cramped()
    answers = infer(rows, model, 9)
    assert [mask.row for mask in answers.masks] == rows
    assert model.at_once == [9, 4, 2]
    assert sorted(model.answered) == list(range(9)), "each row was answered once"


class Failures(FakeSegmenter):
    """Takes three pictures and fails, with one error after another; then works, and notes what it
    is asked about each picture.
    """

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.words: list[int] = []

    def stream(self, asked: Asked, rows: int) -> Answered:
        if self.errors:
            for _, _ in zip(range(3), asked, strict=False):
                pass
            raise self.errors.pop(0)

        def noted() -> Asked:
            for image, queries in asked:
                self.words.append(len(queries))
                yield image, queries

        yield from super().stream(noted(), rows)


@pytest.mark.parametrize(
    "errors",
    [
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError("full")),
        (torch.OutOfMemoryError("full"), ValueError("no")),
    ],
)
def test_no_row_is_lost_when_asking_again_fails_too(errors: tuple[Exception, ...]) -> None:
    rows = [row(number, number // 3) for number in range(12)]
    answers = infer(rows, Failures(*errors), 8)
    assert [answer.row.position for answer in (*answers.masks, *answers.rejects)] == list(range(12))


def test_rows_asked_again_still_share_their_pictures() -> None:
    rows = [row(number, number // 3) for number in range(12)]
    model = Failures(torch.OutOfMemoryError("full"))
    infer(rows, model, 8)
    assert model.words == [3, 3, 3, 3]


def test_a_device_that_fails_beside_the_model_ends_the_shard_with_its_row() -> None:
    rows = [row(number) for number in range(40)]
    with pytest.raises(torch.OutOfMemoryError):
        infer(rows, Broken(torch.OutOfMemoryError("full")), 8)


def test_a_model_that_fails_before_it_takes_a_picture_ends_the_shard() -> None:
    with pytest.raises(RuntimeError, match="at once"):
        infer([row(0)], Failing(RuntimeError("at once")), 8)


class FailingAtTheEnd(Failures):
    """After its first failure it answers, and then fails."""

    def stream(self, asked: Asked, rows: int) -> Answered:
        yield from super().stream(asked, rows)
        raise RuntimeError("after the answer")


def test_a_row_that_was_answered_is_not_rejected_too() -> None:
    with pytest.raises(RuntimeError, match="after the answer"):
        infer([row(0), row(1)], FailingAtTheEnd(ValueError("no")), 8)


def test_pictures_that_cannot_be_read_for_a_reason_of_our_own_end_the_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> np.ndarray:
        raise MemoryError("none left")

    monkeypatch.setattr(images_module, "decode", broken)
    with pytest.raises(MemoryError):
        infer([row(0), row(1, 1)], FakeSegmenter(), 4)


def test_the_wait_for_pictures_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = images_module.decode

    def slowly(data: bytes, settings: SegmentSettings) -> np.ndarray:
        time.sleep(0.05)
        return decode(data, settings)

    monkeypatch.setattr(images_module, "decode", slowly)
    rows = [row(number, number) for number in range(4)]
    answers = infer(rows, FakeSegmenter(), 4)
    assert answers.idle_seconds >= 0.09, "four images in two threads"
    assert answers.infer_seconds < answers.idle_seconds
