"""Calibration: a few shards of a plan, timed on the workers that a run would have."""

from __future__ import annotations

import random

from wordmask.flows.execution.cluster import open_cluster, workers_of
from wordmask.flows.execution.dispatcher import Dispatcher
from wordmask.schemas.runs import Plan, Receipt
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.lease import acquire_lease
from wordmask.tasks.storage import Store
from wordmask.tasks.worker import SEGMENTER

SHARDS = 3  # and at least one for each worker: where they share cores, all are to be at work


def calibrate(
    plan: Plan, settings: RunSettings, factory: str = SEGMENTER
) -> tuple[list[Receipt], int]:
    """Do random pending shards, always the same ones; return their receipts and the worker count.

    Their parts and receipts are in the output then, as if a run had been stopped: no reader sees
    them, and the next run need not do them.

    Raises:
        ClusterError: there are no workers.
        OutputInUseError: a run is at work on the output.
        RuntimeError: a shard failed. The message says which and why.
    """
    receipts: list[Receipt] = []
    output = Store.open(settings.output)
    with acquire_lease(output, "calibration") as lease:
        output.check_writable()
        with open_cluster(settings, plan.shards[0].model_revision, factory) as client:
            workers = len(workers_of(client))
            count = min(len(plan.pending), max(SHARDS, workers))
            shards = random.Random(0).sample(plan.pending, count)
            dispatcher = Dispatcher(
                client,
                settings,
                receipts.append,
                plan.hints,
                fence=lease.fence,
                check=lease.check,
            )
            outcome = dispatcher.run(shards)
    for shard, reason in outcome.failures:
        raise RuntimeError(f"--calibrate: {shard.label} failed: {reason}")
    return receipts, workers
