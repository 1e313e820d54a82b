"""Of rows with one row_id, the first that can be answered is answered, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.rows import Recorder, infer, row_of
from tests.support.runs import carry_out, plan_of, settings_for
from tests.support.tables import png, read_rows
from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.storage import Store

MISSING, EMPTY, DUPLICATE = "missing_image", "empty_query", "duplicate_row_id"
UNREADABLE, FAILED = "image_unreadable", "model_error"


def ended(*rows: dict[str, object], begun_before: bool = False) -> list[str]:
    """How rows of one id end: "mask", or the code of the reject."""
    made = [
        row_of(position, **{"row_id": "twin", "query": "a thing", **values})
        for position, values in enumerate(rows)
    ]
    first = 0 if begun_before else 1
    result = infer(made, FakeSegmenter(), 4, duplicates=tuple(range(first, len(rows))))
    ends = {mask.row.position: "mask" for mask in result.masks}
    ends |= {reject.row.position: reject.code.value for reject in result.rejects}
    return [ends[position] for position in range(len(rows))]


SOUND: dict[str, object] = {}


@pytest.mark.parametrize(
    ("rows", "ends"),
    [
        ([SOUND, SOUND, SOUND], ["mask", DUPLICATE, DUPLICATE]),
        ([{"image_bytes": None}, SOUND, SOUND], [MISSING, "mask", DUPLICATE]),
        ([{"query": ""}, {"image_bytes": b"none"}, SOUND], [EMPTY, UNREADABLE, "mask"]),
        ([{"query": "explode"}, SOUND], [FAILED, "mask"]),
        ([SOUND, {"query": ""}], ["mask", DUPLICATE]),
        ([{"query": ""}, {"query": ""}], [EMPTY, EMPTY]),
    ],
)
def test_the_first_sound_row_of_an_id_is_answered(
    rows: list[dict[str, object]], ends: list[str]
) -> None:
    assert ended(*rows) == ends


def test_rows_of_an_id_that_began_in_an_earlier_shard_are_not_answered() -> None:
    assert ended(SOUND, SOUND, begun_before=True) == [DUPLICATE, DUPLICATE]


def test_rows_of_other_ids_are_asked_about_together_and_once() -> None:
    rows = [row_of(0), row_of(1, row_id="r0"), row_of(2, image_bytes=None), row_of(3, row_id="r2")]
    model = Recorder()
    infer(rows, model, 4, duplicates=(1, 3))
    assert [words for _, words in model.calls] == [[("thing 0",)], [("thing 3",)]]


def test_a_retried_row_takes_its_answer_back_from_the_next_of_its_id(tmp_path: Path) -> None:
    rows = [
        {"row_id": "twin", "image": "late.png", "query": "a thing"},
        {"row_id": "twin", "image": png(1), "query": "a thing"},
    ]
    settings = settings_for(tmp_path, rows)
    carry_out(plan_of(settings, REVISION), settings)
    assert [row["row"] for row in read_rows(settings.output, "masks")] == [1]
    (tmp_path / "late.png").write_bytes(png(2))
    carry_out(*retry_plan(Store.open(settings.output), (RejectCode.IMAGE_NOT_FOUND,)))
    assert [row["row"] for row in read_rows(settings.output, "masks")] == [0]
    codes = [row["code"] for row in read_rows(settings.output, "rejects")]
    assert codes == [DUPLICATE]
