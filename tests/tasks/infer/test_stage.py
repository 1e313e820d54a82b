"""What the model is asked, how often, and what of a shard's time is its own."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.fakes import FakeSegmenter
from tests.support.rows import Recorder, infer, row_of
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.infer import images as images_module


@given(images=st.lists(st.integers(0, 3), min_size=1, max_size=30), batch_rows=st.integers(1, 8))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=50)
def test_rows_in_one_stream_are_answered_as_if_alone(images: list[int], batch_rows: int) -> None:
    rows = [row_of(number, image) for number, image in enumerate(images)]
    model = Recorder()
    answers = infer(rows, model, batch_rows)
    assert answers.rejects == ()
    assert [mask.row for mask in answers.masks] == rows
    assert [at_once for at_once, _ in model.calls] == [batch_rows]
    for mask, asked in zip(answers.masks, rows, strict=True):
        (alone,) = infer([asked], FakeSegmenter(), 1).masks
        assert (mask.image_id, mask.segmentation.rle) == (alone.image_id, alone.segmentation.rle)


def test_rows_rejected_early_never_reach_the_model() -> None:
    rows = [
        row_of(0, mode="all"),
        row_of(1, query=" "),
        row_of(2),
        row_of(3, spatial_refs=((0.1, float("nan")),)),
        row_of(4, mode=""),
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


def test_the_wait_for_images_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = images_module.decode

    def slowly(data: bytes, settings: SegmentSettings) -> np.ndarray:
        time.sleep(0.05)
        return decode(data, settings)

    monkeypatch.setattr(images_module, "decode", slowly)
    rows = [row_of(number, number) for number in range(4)]
    answers = infer(rows, FakeSegmenter(), 4)
    assert answers.idle_seconds >= 0.09, "four images in two threads"
    assert answers.infer_seconds < answers.idle_seconds
