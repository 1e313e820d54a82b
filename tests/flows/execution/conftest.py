"""A standing cluster, and a run of nine shards on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from tests.support.fakes import FakeSegmenter
from tests.support.runs import plan_of
from tests.support.tables import png, write_input
from wordmask.schemas.runs import Plan
from wordmask.schemas.settings import RunSettings


@pytest.fixture
def standing() -> Iterator[LocalCluster]:
    """A cluster within this process, whose worker offers a GPU."""
    options = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": None,
        "resources": {"GPU": 1},
    }
    with LocalCluster(**options) as cluster:
        yield cluster


@pytest.fixture
def nine_shards(tmp_path: Path, standing: LocalCluster) -> tuple[RunSettings, Plan]:
    """The settings and the plan of a run of nine rows, one a shard, on the standing cluster."""
    rows = [{"image": png(i), "query": f"thing {i}"} for i in range(9)]
    settings = RunSettings(
        input=write_input(tmp_path / "in.parquet", rows),
        output=str(tmp_path / "out"),
        shard_rows=1,
        scheduler=standing.scheduler_address,
    )
    return settings, plan_of(settings, FakeSegmenter("demo").revision)
