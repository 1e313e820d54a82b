"""The model has what there is room for, and a row that it fails on costs no other."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.fakes import FakeSegmenter
from tests.support.rows import PNGS, SETTINGS, Answered, Asked, infer, row_of
from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.devices import ModelFailsError
from wordmask.tasks.images.decode import decode
from wordmask.tasks.infer import stream


@pytest.mark.parametrize("bad", [{3}, {0}, {5}, {1, 2}, set(range(6))])
def test_only_the_rows_the_model_fails_on_are_rejected(bad: set[int]) -> None:
    rows = [row_of(number, number % 2, "explode" if number in bad else None) for number in range(6)]
    answers = infer(rows, FakeSegmenter(), 4)
    assert [mask.row.position for mask in answers.masks] == [
        number for number in range(6) if number not in bad
    ]
    assert [reject.row.position for reject in answers.rejects] == sorted(bad)
    assert {(reject.code, reject.detail) for reject in answers.rejects} == {
        (RejectCode.MODEL_ERROR, "RuntimeError: this row is explosive")
    }


class Greedy(FakeSegmenter):
    """Takes all it is given before it answers, and keeps the bytes of images and their masks."""

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
        row_of(number, image, "explode" if number in bad else None)
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
    rows = [row_of(number) for number in range(3)]
    answers = infer(rows, Broken(ValueError("no such path")), 4)
    assert [mask.row.position for mask in answers.masks] == [0, 2]
    assert [(reject.row.position, reject.detail) for reject in answers.rejects] == [
        (1, "ValueError: no such path")
    ]
    with pytest.raises(MemoryError):
        infer(rows, Broken(MemoryError()), 4)


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
        OSError("disk"),
        torch.AcceleratorError("device lost"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_the_machines_fault_rejects_no_row(error: Exception) -> None:
    rows = [row_of(0), row_of(1)]
    with pytest.raises(type(error)):
        infer(rows, Failing(error), 8)


class Short(FakeSegmenter):
    """Has no memory for the rows of tests, but for the canary."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def stream(self, asked: Asked, rows: int) -> Answered:
        for image, queries in asked:
            if queries[0][1].object.startswith("thing"):
                raise self.error
            yield from super().stream([(image, queries)], rows)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_for_a_shard_rejects_no_row(error: Exception) -> None:
    with pytest.raises(type(error)):
        infer([row_of(0), row_of(1)], Short(error), 8)


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
    rows = [row_of(number, number // 3) for number in range(9)]
    model = Cramped()
    answers = infer(rows, model, 9)
    assert [mask.row for mask in answers.masks] == rows
    assert model.at_once == [9, 4, 2]
    assert sorted(model.answered) == list(range(9)), "each row was answered once"


class Failures(FakeSegmenter):
    """Fails after three images, with one error after another; then counts each image's queries."""

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
    rows = [row_of(number, number // 3) for number in range(12)]
    answers = infer(rows, Failures(*errors), 8)
    assert [answer.row.position for answer in (*answers.masks, *answers.rejects)] == list(range(12))


def test_rows_asked_again_still_share_their_images() -> None:
    rows = [row_of(number, number // 3) for number in range(12)]
    model = Failures(torch.OutOfMemoryError("full"))
    infer(rows, model, 8)
    assert model.words == [3, 3, 3, 3]


def test_a_device_that_fails_beside_the_model_ends_the_shard_with_its_row() -> None:
    rows = [row_of(number) for number in range(40)]
    with pytest.raises(torch.OutOfMemoryError):
        infer(rows, Broken(torch.OutOfMemoryError("full")), 8)


def test_a_model_that_fails_before_it_takes_an_image_ends_the_shard() -> None:
    with pytest.raises(ModelFailsError, match="at once"):
        infer([row_of(0)], Failing(RuntimeError("at once")), 8)


class FailingAtTheEnd(Failures):
    """After its first failure it answers, and then fails."""

    def stream(self, asked: Asked, rows: int) -> Answered:
        yield from super().stream(asked, rows)
        raise RuntimeError("after the answer")


def test_a_row_that_was_answered_is_not_rejected_too() -> None:
    with pytest.raises(RuntimeError, match="after the answer"):
        infer([row_of(0), row_of(1)], FailingAtTheEnd(ValueError("no")), 8)
