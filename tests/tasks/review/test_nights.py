"""How many runs of a budget a plan takes. On 117a9f2 `plan` knew no budget."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes import REVISION
from tests.support.rows import SETTINGS
from wordmask.schemas.runs import Plan, RowRange, RunSummary, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.review.estimate import Rate, TimeEstimate
from wordmask.tasks.review.nights import nights_left

RUN = RunSettings(input="in.parquet", output="out")
ESTIMATE = TimeEstimate(
    basis="receipts", note="", rates=(Rate(worker="as before", rows_per_second=2.0, seconds=500.0),)
)


def plan_with(rows: int) -> Plan:
    shard = Shard(
        shard_id="s",
        file="in.parquet",
        name="in.parquet",
        fingerprint="f",
        ranges=(RowRange(0, 0, rows),),
        first_row=0,
        model_revision=REVISION,
        settings_hash=SETTINGS.settings_hash,
    )
    return Plan(run_id="r", shards=(shard,), done=frozenset(), files=1, input_bytes=1)


def newest(**values: Any) -> RunSummary:
    fields = {
        "run_id": "r",
        "settings": RUN,
        "settings_hash": SETTINGS.settings_hash,
        "model_revision": REVISION,
        "rows_per_second": 10.0,
        "shards_computed": 3,
        "verify_seconds": 20.0,
    }
    return RunSummary.model_construct(**(fields | values))


@pytest.mark.parametrize(
    ("run", "budget", "nights"),
    [
        (newest(), 120.0, 1),  # 1,000 rows at 10 a second, in the 100 s that verification leaves
        (newest(), 110.0, 2),
        (newest(model_revision="another"), 120.0, 5),  # the estimate's 500 s
        (newest(shards_computed=0), 270.0, 2),
        (None, 500.0, 1),
        (newest(), 20.0, None),
    ],
)
def test_the_rest_is_divided_by_what_a_budget_leaves_for_rows(
    run: RunSummary | None, budget: float, nights: int | None
) -> None:
    assert nights_left(plan_with(1000), RUN, budget, run, ESTIMATE).nights == nights


def test_an_unknown_speed_is_told() -> None:
    found = nights_left(plan_with(1), RUN, 60.0, None, None)
    assert (found.nights, found.note) == (None, "the speed is not known; --calibrate finds it")
