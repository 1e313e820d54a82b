"""Input tables of scenes for benchmarks, and the work of a worker on them in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.flows.execution.cluster import SHARDS_PER_WORKER
from wordmask.model.segmenter import Segmenter
from wordmask.schemas.runs import Plan, Receipt
from wordmask.schemas.settings import ModelSettings, RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.convert.scenes import export_scenes
from wordmask.tasks.plan import make_plan
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store


def scene_table(folder: Path, rows: int, *, distinct: int, shard_rows: int) -> RunSettings:
    """A table of so many rows over `distinct` scenes, and settings of a run over it."""
    drawn = str(folder / "drawn.parquet")
    export_scenes(drawn, count=distinct, seed=3)
    once = pq.read_table(drawn).select(["image", "query"])
    times = -(-rows // distinct)
    pq.write_table(
        pa.concat_tables([once] * times).slice(0, rows),
        folder / "rows.parquet",
        row_group_size=shard_rows,
    )
    output = folder / "out"
    return RunSettings(
        input=str(folder / "rows.parquet"),
        output=str(output),
        shard_rows=shard_rows,
        model=ModelSettings(device="cpu"),
    )


def plan_of(settings: RunSettings, segmenter: Segmenter) -> Plan:
    return make_plan(settings, segmenter.revision, Store.open(settings.output))


def work_through(plan: Plan, settings: RunSettings, segmenter: Segmenter) -> Iterator[Receipt]:
    """As a Dask worker does it: two shards at a time, of which one has the model."""
    context = ShardContext(segmenter)
    with ThreadPoolExecutor(SHARDS_PER_WORKER) as threads:
        yield from threads.map(lambda shard: process_shard(shard, settings, context), plan.shards)
