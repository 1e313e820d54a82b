"""Each distinct image is read once; one that cannot be read costs its own rows only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.fakes import FakeSegmenter
from tests.support.rows import PNGS, Recorder, infer, row_of
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.infer import images as images_module


def test_each_distinct_image_is_decoded_once_and_its_rows_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []
    decode = images_module.decode

    def record(data: bytes, settings: SegmentSettings) -> np.ndarray:
        decoded.append(data)
        return decode(data, settings)

    monkeypatch.setattr(images_module, "decode", record)
    rows = [row_of(number, number % 2) for number in range(8)]
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


@pytest.mark.parametrize("part", ["image_bytes", "decode"])
def test_an_unforeseen_error_costs_the_rows_of_one_image(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(images_module, part)

    def odd(what: Any, *rest: Any) -> Any:
        if PNGS[1] in (what, getattr(what, "image_bytes", None)):
            raise TypeError("about thing 1: not a number")
        return real(what, *rest)

    monkeypatch.setattr(images_module, part, odd)
    rows = [row_of(number, number % 2) for number in range(4)]
    answers = infer(rows, FakeSegmenter(), 4)
    assert [mask.row.position for mask in answers.masks] == [0, 2]
    found = [(reject.row.position, reject.code, reject.detail) for reject in answers.rejects]
    assert found == [
        (number, RejectCode.IMAGE_UNREADABLE, "TypeError: about ***: not a number")
        for number in (1, 3)
    ]


def test_an_unknown_scheme_is_the_rows_own_fault() -> None:
    rows = [replace(row_of(0), image_bytes=None, image_uri="nonsense://x/a.png"), row_of(1)]
    settings = SegmentSettings(allow_roots=("nonsense://",))
    answers = infer(rows, FakeSegmenter(), 4, settings=settings)
    assert [(reject.row.position, reject.code) for reject in answers.rejects] == [
        (0, RejectCode.IMAGE_UNREADABLE)
    ]
    assert "Protocol not known: nonsense" in answers.rejects[0].detail


def test_a_store_that_cannot_be_reached_ends_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> bytes:
        raise ConnectionError("the store does not answer")

    monkeypatch.setattr(images_module, "image_bytes", unreachable)
    rows = [row_of(0, image_bytes=None, image_uri="a.png")]
    with pytest.raises(ConnectionError):
        infer(rows, FakeSegmenter(), 4)


def test_images_that_cannot_be_read_for_lack_of_memory_end_the_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> np.ndarray:
        raise MemoryError("none left")

    monkeypatch.setattr(images_module, "decode", broken)
    with pytest.raises(MemoryError):
        infer([row_of(0), row_of(1, 1)], FakeSegmenter(), 4)
