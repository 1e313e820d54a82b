"""How long the rest of a plan will take one worker: from receipts of shards done before, else by arithmetic.

Of the receipts only the newest are read, so that planning stays cheap.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from pydantic import ValidationError

from model.registry import DEMO, ModelSource
from schemas.runs import Plan, Receipt, receipt_path
from schemas.settings import Frozen, RunSettings
from tasks.storage import Store

NEWEST = 50  # receipts that are read
READS_AT_ONCE = 16


class Rate(Frozen):
    """Rows a second of one worker, and the seconds that the pending rows take it; None if it cannot run the model at all.

    Intervals are from the 10th to the 90th percentile of what shards took; arithmetic has none.
    """

    worker: str
    rows_per_second: float
    rows_per_second_interval: tuple[float, float] | None = None
    seconds: float | None
    seconds_interval: tuple[float, float] | None = None


class TimeEstimate(Frozen):
    """`basis` says what the rates follow from, `note` the same for people, with everything that was assumed."""

    basis: Literal["receipts", "arithmetic", "nothing"]
    note: str
    receipts: int = 0
    rates: tuple[Rate, ...] = ()


def estimate_time(plan: Plan, settings: RunSettings, source: ModelSource) -> TimeEstimate:
    """The time of the plan's pending shards, for one worker.

    Raises:
        ModelError: there are no receipts to go by, and the model has no configuration to calculate with.
    """
    rows = sum(shard.rows for shard in plan.pending)
    measured = _measured(plan, settings, source.revision)
    if measured:
        return _from_receipts(measured, rows)
    if source.name == DEMO:
        return _nothing("the default model is small")
    return _by_arithmetic(rows, settings, source)


def _measured(plan: Plan, settings: RunSettings, model_revision: str) -> list[float]:
    """Rows a second of shards done before with the same model and settings; those of this input before others, new before old."""
    output = Store.open(settings.output)
    names = sorted(output.newest("receipts", ".json"), key=lambda name: name not in plan.done)[:NEWEST]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        receipts = [receipt for receipt in pool.map(lambda name: _read(output, name), names) if receipt is not None]
    same = (model_revision, settings.segment.settings_hash)
    alike = [receipt for receipt in receipts if (receipt.shard.model_revision, receipt.shard.settings_hash) == same]
    seconds = [receipt.timings.infer + receipt.timings.idle for receipt in alike]
    return [receipt.rows / taken for receipt, taken in zip(alike, seconds, strict=True) if receipt.rows and taken > 0]


def _read(output: Store, name: str) -> Receipt | None:
    """A receipt; None if it is another version's, whose times may mean something else."""
    try:
        return Receipt.model_validate_json(output.read_bytes(receipt_path(name)))
    except ValidationError:
        return None


def _from_receipts(measured: list[float], rows: int) -> TimeEstimate:
    slow, middle, fast = (float(value) for value in np.percentile(measured, (10, 50, 90)))
    rate = Rate(
        worker="as before", rows_per_second=middle, rows_per_second_interval=(slow, fast),
        seconds=rows / middle, seconds_interval=(rows / fast, rows / slow),
    )  # fmt: skip
    note = (
        "one worker, with the model busy as in shards of this output done before with the same model and settings: "
        "median, and 10th to 90th percentile"
    )
    return TimeEstimate(basis="receipts", note=note, receipts=len(measured), rates=(rate,))


def _by_arithmetic(rows: int, settings: RunSettings, source: ModelSource) -> TimeEstimate:
    from model.costs import EFFICIENCY, SMALLEST, Workload, all_parameters, estimates  # takes seconds to import, by way of torch
    from model.moondream import read_config

    config = read_config(source.model.config_folder())
    if all_parameters(config) < SMALLEST:
        return _nothing("the model is small")
    segment = settings.segment
    if segment.deterministic:
        return _nothing("rows are to be deterministic")
    load = Workload(batch_rows=settings.batch_rows, refiner_iterations=segment.refiner_iterations, dtype=segment.dtype)
    rates = tuple(
        Rate(
            worker=f"{found.gpu}, {found.queries_per_image} {'query' if found.queries_per_image == 1 else 'queries'} per image",
            rows_per_second=found.rows_per_second,
            seconds=rows / found.rows_per_second if found.rows_per_second else None,
        )
        for found in estimates(config, load)
    )
    note = (
        f"estimate, from arithmetic alone, never measured here: one GPU at {EFFICIENCY:.0%} of its data sheet's peaks (assumed), "
        f"images of {load.crops_per_image} crops, paths of {load.path_tokens} tokens"
    )
    return TimeEstimate(basis="arithmetic", note=note, rates=rates)


def _nothing(why: str) -> TimeEstimate:
    note = f"nothing to estimate from: no shard of this output was done with this model and settings; {why}, and arithmetic does not tell"
    return TimeEstimate(basis="nothing", note=note)
