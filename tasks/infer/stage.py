"""Rows of a shard through the model: images are read and decoded ahead while another shard has it.

A row that fails costs no other: what is wrong with it becomes a reject. What is wrong with the
machine (a store that is down, a model that cannot run at all) ends the shard instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.infer.images import ImageLoader
from wordmask.tasks.infer.stream import ModelStream
from wordmask.tasks.output.reuse import Earlier
from wordmask.tasks.rows import Row, RowResult, ShardResult

DECODE_THREADS = 2


def infer_rows(
    rows: Sequence[Row],
    shard: Shard,
    settings: RunSettings,
    context: ShardContext,
    *,
    reusable: Mapping[str, Earlier] = MappingProxyType({}),
    wanted_since: float | None = None,
) -> ShardResult:
    """End every row as a mask or a reject.

    Args:
        rows: rows that passed `check_rows`.
        shard: the shard of the rows.
        settings: how to read images, and how many rows to decode at a time.
        context: the model, and the lock on it.
        reusable: answers of earlier runs, by `row_key`, for rows with the same image and query.
        wanted_since: when the shard began (`time.perf_counter`, default now). If the model was free
            since then, it counts as idle.

    Raises:
        ModelFailsError: the model fails on a row that is known to work.
        Exception: the machine is at fault, not a row.
    """
    if wanted_since is None:
        wanted_since = time.perf_counter()
    pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
    try:
        client = HttpsClient.of(settings, context.host_limits)
        loader = ImageLoader(shard, settings.segment, pool, reusable, client)
        stream = ModelStream(context.segmenter, settings.batch_rows, loader.load(rows))
        with context.model_lock.hold(wanted_since) as idle_seconds:
            started = time.perf_counter()
            stream.run()
            ran_seconds = time.perf_counter() - started
        results = stream.finish()
        if stream.canary.suspects:
            with context.model_lock.hold(time.perf_counter()):
                stream.canary.decide()
    finally:
        pool.shutdown(cancel_futures=True)
    return ShardResult.of(
        _with_fingerprints(results, loader.fingerprints),
        infer_seconds=ran_seconds - stream.starved_seconds,
        idle_seconds=idle_seconds + stream.starved_seconds,
    )


def _with_fingerprints(
    results: Iterable[RowResult], fingerprints: Mapping[int, str | None]
) -> Iterator[RowResult]:
    for result in results:
        yield replace(result, image_fingerprint=fingerprints.get(result.row.position))
