"""Every row of a shard ends as exactly one mask or one reject, whatever happens to it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.rows import row_of, shard_of
from tests.support.runs import plan_of, settings_for
from tests.support.tables import png, write_input
from wordmask.model.types import Query, Segmentation
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.infer import stream
from wordmask.tasks.infer.hints import apply_hints
from wordmask.tasks.infer.turns import end_rows
from wordmask.tasks.rows import Reject, ShardResult
from wordmask.tasks.shard import RowsLostError, TooManyModelErrorsError, process_shard
from wordmask.tasks.storage import Store

IMAGES = [png(0), png(1), b"no image", None]
QUERIES = ["a thing", "absent", "explode", None]
SETTINGS = RunSettings(input="in.parquet", output="out", batch_rows=3)


@given(
    kinds=st.lists(st.tuples(st.sampled_from(IMAGES), st.sampled_from(QUERIES)), max_size=20),
    duplicates=st.sets(st.integers(0, 19), max_size=2),
    poison_rows=st.sets(st.integers(0, 19), max_size=2),
    images_at_once=st.integers(1, 4),
)
@hypothesis_settings(derandomize=True, deadline=None, max_examples=60)
def test_every_row_ends_once_in_order(
    kinds: list[tuple[bytes | None, str | None]],
    duplicates: set[int],
    poison_rows: set[int],
    images_at_once: int,
) -> None:
    rows = [
        row_of(position, image_bytes=image, query=query)
        for position, (image, query) in enumerate(kinds)
    ]
    positions = range(len(rows))
    shard = shard_of(rows, duplicates=tuple(duplicates))
    hints = ShardHints(poison_rows=tuple(sorted(poison_rows & set(positions))))
    context = ShardContext(FakeSegmenter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "MAX_BYTES", images_at_once * 24 * 32 * 3)
        open_rows, settled = apply_hints(rows, hints, Store.open("memory://nothing"))
        result = end_rows(open_rows, shard, SETTINGS, context, settled=settled)
    assert sorted(each.row.position for each in result.results) == [*positions]
    for results in (result.masks, result.rejects):
        ended = [each.row.position for each in results]
        assert ended == sorted(ended)
    codes = {reject.row.position: reject.code for reject in result.rejects}
    assert all(codes[position] == RejectCode.WORKER_KILLED for position in hints.poison_rows)


@given(ended=st.lists(st.booleans(), max_size=20), order=st.randoms())
@hypothesis_settings(derandomize=True, deadline=None, max_examples=50)
def test_results_in_any_order_are_sorted_and_none_is_lost(
    ended: list[bool], order: random.Random
) -> None:
    rejects = [
        Reject(row=row_of(position), code=RejectCode.MISSING_IMAGE, detail="")
        for position in range(len(ended))
    ]
    shuffled = [*rejects]
    order.shuffle(shuffled)
    first = [each for each in shuffled if ended[each.row.position]]
    second = [each for each in shuffled if not ended[each.row.position]]
    result = ShardResult.of(first, infer_seconds=1.0, idle_seconds=2.0).including(second)
    assert result.results == rejects
    assert (result.infer_seconds, result.idle_seconds) == (1.0, 2.0)


class Forgetful(FakeSegmenter):
    """Answers all queries but the first."""

    def stream(
        self, asked: Iterable[tuple[np.ndarray, Sequence[tuple[int, Query]]]], rows: int
    ) -> Iterator[tuple[int, Future[Segmentation]]]:
        for tag, future in super().stream(asked, rows):
            if tag:
                yield tag, future


def test_a_shard_with_a_lost_row_writes_nothing(tmp_path: Path) -> None:
    rows = [{"image": png(1), "query": "a thing"}, {"image": png(2), "query": "a thing"}]
    write_input(tmp_path / "in.parquet", rows)
    settings = RunSettings(input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"))
    (shard,) = plan_of(settings, REVISION).shards
    with pytest.raises(RowsLostError, match=r"2 rows planned, 2 read, 1 ended.*\[0\]"):
        process_shard(shard, settings, ShardContext(Forgetful()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bad", "rows"), [(5, 16), (16, 16)])
def test_a_shard_in_which_the_model_fails_on_a_large_share_of_the_rows_writes_nothing(
    bad: int, rows: int, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, _explosive(bad, rows))
    (shard,) = plan_of(settings, REVISION).shards
    message = (
        rf"rows 0-15: {bad} of 16 rows .* a share of {bad / rows:.3g}, and max_model_errors = 0.25"
        r" .* RuntimeError: this row is explosive\. .* --max-model-errors 1"
    )
    with pytest.raises(TooManyModelErrorsError, match=message):
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bad", "rows", "limit"), [(1, 1, 0.25), (4, 4, 0.0), (5, 20, 0.25), (8, 8, 1.0)]
)
def test_few_rows_that_the_model_fails_on_are_rejected_alone(
    bad: int, rows: int, limit: float, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, _explosive(bad, rows), max_model_errors=limit)
    (shard,) = plan_of(settings, REVISION).shards
    receipt = process_shard(shard, settings, ShardContext(FakeSegmenter()))
    assert (receipt.rejects, receipt.masks) == ({"model_error": bad}, rows - bad)


def _explosive(bad: int, rows: int) -> list[dict[str, Any]]:
    """Return rows of which some make the model fail."""
    words = ["explode"] * bad + ["a thing"] * (rows - bad)
    return [{"image": png(1), "query": query} for query in words]
