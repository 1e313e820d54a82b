"""Rows are rejected for what is their own fault, and never for a model or a device that fails."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from tests.support.fakes import FakeSegmenter
from tests.support.rows import Answered, Asked, infer, row_of
from wordmask.model.segmenter import Segmenter
from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.infer import canary
from wordmask.tasks.worker import BrokenDeviceError, translate_device_errors

EXPLOSIVE = "explode"


class Failing(FakeSegmenter):
    """Takes what it is asked, and fails whatever it is."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def stream(self, asked: Asked, rows: int) -> Answered:
        for _ in asked:
            raise self.error
        yield from ()


class Watched(FakeSegmenter):
    """Counts how often it was asked about the canary."""

    def __init__(self) -> None:
        super().__init__()
        self.canaries = 0

    def stream(self, asked: Asked, rows: int) -> Answered:
        for image, queries in asked:
            self.canaries += sum(query == canary.QUERY for _, query in queries)
            yield from super().stream([(image, queries)], rows)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
        "CUDA error: CUSPARSE_STATUS_EXECUTION_FAILED when calling `cusparseSpMM(handle)`",
        "CUDA driver error: unknown error",
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error",
        "HIP error: invalid device function",
        "Triton Error [CUDA]: an illegal memory access was encountered",
    ],
)
def test_a_failure_below_pytorch_is_the_devices_and_costs_no_row(text: str) -> None:
    rows = [row_of(number) for number in range(8)]
    with pytest.raises(BrokenDeviceError), translate_device_errors():
        infer(rows, Failing(RuntimeError(text)), 4)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shape of a wrong kernel"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("none left"),
    ],
    ids=lambda error: str(error)[:40],
)
@pytest.mark.parametrize("rows", [1, 8])
def test_a_model_that_fails_on_everything_costs_no_row(error: Exception, rows: int) -> None:
    with pytest.raises(BrokenDeviceError, match="a drawn square too"), translate_device_errors():
        infer([row_of(number) for number in range(rows)], Failing(error), 4)


class Cramped(FakeSegmenter):
    """Its libraries have memory for two rows at once."""

    def stream(self, asked: Asked, rows: int) -> Answered:
        if rows > 2:
            for _ in asked:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        yield from super().stream(asked, rows)


def test_a_library_without_memory_gets_fewer_rows_first() -> None:
    rows = [row_of(number) for number in range(9)]
    assert [mask.row for mask in infer(rows, Cramped(), 8).masks] == rows


@pytest.mark.parametrize(
    ("bad", "canaries"),
    [
        ((), 0),
        ((1,), 0),  # the answer that follows decides
        ((1, 3, 5), 0),
        ((7,), 1),
        ((4, 5), 1),
        (range(8), 1),
    ],
)
def test_rows_are_rejected_where_the_model_works_and_it_is_asked_only_as_often_as_needed(
    bad: tuple[int, ...], canaries: int
) -> None:
    words = dict.fromkeys(bad, EXPLOSIVE)
    model = Watched()
    answers = infer([row_of(number, 0, words.get(number)) for number in range(8)], model, 4)
    assert [reject.row.position for reject in answers.rejects] == list(bad)
    assert {reject.code for reject in answers.rejects} <= {RejectCode.MODEL_ERROR}
    assert model.canaries == canaries


class Hoarder(FakeSegmenter):
    """Holds an object while it fails, and notes whether it is still there when it is asked next."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Callable[[], object] = lambda: None
        self.was_free: list[bool] = []

    def stream(self, asked: Asked, rows: int) -> Answered:
        self.was_free.append(self.held() is None)
        for image, queries in asked:
            if queries[0][1] == canary.QUERY:
                yield from super().stream([(image, queries)], rows)
                continue
            batch = {*image.shape}
            self.held = weakref.ref(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_failed_for_want_of_memory_holds_none_when_the_canary_is_asked() -> None:
    model = Hoarder()
    with pytest.raises(torch.OutOfMemoryError):
        infer([row_of(0)], model, 1)
    assert model.was_free == [True, True]


@pytest.mark.parametrize("grammar", [True, False])
def test_the_model_that_ships_with_the_package_answers_the_canary(grammar: bool) -> None:
    segmenter = Segmenter.from_pretrained("demo", device="cpu", grammar=grammar)
    segmenter.check_query(canary.QUERY.object)
    canary._ask(segmenter)


def test_failures_that_differ_in_numbers_or_words_alone_are_alike() -> None:
    failures = canary.Canary(FakeSegmenter())
    for number in range(2):
        error = ValueError(f"no kernel for 'thing {number}' at 0xf{number} of {number} rows")
        failures.row_failed(row_of(number), error)
    failures.row_failed(row_of(2), TypeError("another"))
    assert [*failures.suspects.values()] == [2, 1]
