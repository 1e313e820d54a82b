"""Calibration does a few shards on the workers of a run, and leaves the output to the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import LocalCluster

from tests.support.fakes import FACTORY, FakeSegmenter
from tests.support.runs import plan_of
from tests.support.tables import png, write_input
from wordmask.flows.execution.calibrate import calibrate
from wordmask.schemas.runs import Plan
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import status
from wordmask.tasks.output.lease import read_lease
from wordmask.tasks.storage import Store


def test_calibrating_does_a_few_shards_and_publishes_nothing(
    nine_shards: tuple[RunSettings, Plan], standing: LocalCluster
) -> None:
    settings, plan = nine_shards
    receipts, workers = calibrate(plan, settings, FACTORY)
    assert (len(receipts), workers) == (3, len(standing.workers))
    planned_again = plan_of(settings, plan.shards[0].model_revision)
    assert planned_again.done == {receipt.shard.shard_id for receipt in receipts}
    found = status(Store.open(settings.output))
    assert (found.runs, found.unpublished) == ((), 3)
    assert read_lease(Store.open(settings.output)) is None, "a run may begin"


def test_calibrating_says_which_shard_failed(tmp_path: Path, standing: LocalCluster) -> None:
    rows = [{"image": png(0), "query": "out of memory"}]
    settings = RunSettings(
        input=write_input(tmp_path / "in.parquet", rows),
        output=str(tmp_path / "out"),
        retries=0,
        scheduler=standing.scheduler_address,
    )
    plan = plan_of(settings, FakeSegmenter("demo").revision)
    with pytest.raises(
        RuntimeError, match=r"--calibrate: in\.parquet rows 0-0 failed: MemoryError"
    ):
        calibrate(plan, settings, FACTORY)
