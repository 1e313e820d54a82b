"""How long the rest of a plan will take and what it will cost: from receipts of shards done before,
else by arithmetic.

Of the receipts only the newest are read, so that planning stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from pydantic import ValidationError

from wordmask.model.hub.registry import DEMO, ModelSource
from wordmask.schemas.runs import Plan, Receipt
from wordmask.schemas.settings import Frozen, RunSettings
from wordmask.tasks.output.catalog import newest_shards, read_receipt
from wordmask.tasks.storage import Store

NEWEST = 50  # receipts that are read
READS_AT_ONCE = 16


class Rate(Frozen):
    """Rows a second of one worker, the seconds that the pending rows take all workers together, and
    the dollars, at a price; None if it cannot run the model at all.

    Intervals are from the 10th to the 90th percentile of what shards took; arithmetic has none.
    """

    worker: str
    rows_per_second: float
    rows_per_second_interval: tuple[float, float] | None = None
    seconds: float | None
    seconds_interval: tuple[float, float] | None = None
    cost: float | None = None
    cost_interval: tuple[float, float] | None = None

    def shared(self, workers: int, price_per_hour: float | None) -> Rate:
        """The rate of one worker as that of so many, which cost so many dollars an hour
        together.
        """

        def each(value: float | None, factor: float) -> float | None:
            return None if value is None else value * factor

        def both(interval: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
            return None if interval is None else (interval[0] * factor, interval[1] * factor)

        time = {
            "seconds": each(self.seconds, 1 / workers),
            "seconds_interval": both(self.seconds_interval, 1 / workers),
        }
        if price_per_hour is None:
            return self.model_copy(update=time)
        dollars = price_per_hour / 3600 / workers
        cost = {
            "cost": each(self.seconds, dollars),
            "cost_interval": both(self.seconds_interval, dollars),
        }
        return self.model_copy(update=time | cost)


class TimeEstimate(Frozen):
    """`basis` says what the rates follow from, `note` the same for people, with everything that was
    assumed.
    """

    basis: Literal["receipts", "calibration", "arithmetic", "nothing"]
    note: str
    workers: int = 1
    receipts: int = 0
    rates: tuple[Rate, ...] = ()


def estimate_time(
    plan: Plan,
    settings: RunSettings,
    source: ModelSource,
    output: Store,
    *,
    calibrated: Sequence[Receipt] = (),
    price_per_hour: float | None = None,
) -> TimeEstimate:
    """The time and cost of the plan's pending shards for the workers of the settings, or for one.
    `calibrated`: receipts to go by rather than by those of the output. The price is that of all
    workers together, in dollars.

    Raises:
        ModelError: there are no receipts to go by, and the model has no configuration to calculate
        with.
    """
    workers = settings.workers or 1
    found = _of_one_worker(plan, settings, source, output, calibrated)
    rates = tuple(rate.shared(workers, price_per_hour) for rate in found.rates)
    note = (
        f"{found.note}; rows that are copied from earlier answers take less"
        if plan.hints and rates
        else found.note
    )
    return found.model_copy(
        update={
            "workers": workers,
            "rates": rates,
            "note": f"{workers} workers: {note}" if workers > 1 else note,
        }
    )


def _of_one_worker(
    plan: Plan,
    settings: RunSettings,
    source: ModelSource,
    output: Store,
    calibrated: Sequence[Receipt],
) -> TimeEstimate:
    rows = sum(shard.rows for shard in plan.pending)
    if measured := _rates(calibrated):
        return _from_receipts(
            measured,
            rows,
            "calibration",
            "in the shards just timed, which are done now; workers that had just begun",
        )
    if measured := _rates(_alike(plan, settings, source.revision, output)):
        return _from_receipts(
            measured,
            rows,
            "receipts",
            "in shards of this output done before with the same model and settings",
        )
    if source.name == DEMO:
        return _nothing("the default model is small")
    return _by_arithmetic(rows, settings, source)


def _rates(receipts: Iterable[Receipt]) -> list[float]:
    """Rows a second. Copied rows are no measure: a shard with any is left out."""
    seconds = [
        (receipt, receipt.timings.infer + receipt.timings.idle)
        for receipt in receipts
        if not receipt.copied
    ]
    return [receipt.rows / taken for receipt, taken in seconds if receipt.rows and taken > 0]


def _alike(plan: Plan, settings: RunSettings, model_revision: str, output: Store) -> list[Receipt]:
    """Receipts of the same model and settings; those of this input before others, new before
    old.
    """
    names = sorted(newest_shards(output), key=lambda name: name not in plan.done)[:NEWEST]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        receipts = [
            receipt
            for receipt in pool.map(lambda name: _read(output, name), names)
            if receipt is not None
        ]
    same = (model_revision, settings.segment.settings_hash)
    return [
        receipt
        for receipt in receipts
        if (receipt.shard.model_revision, receipt.shard.settings_hash) == same
    ]


def _read(output: Store, name: str) -> Receipt | None:
    """A receipt; None if it is another version's, whose times may mean something else."""
    try:
        return read_receipt(output, name)
    except ValidationError:
        return None


def _from_receipts(
    measured: list[float], rows: int, basis: Literal["receipts", "calibration"], where: str
) -> TimeEstimate:
    slow, middle, fast = (float(value) for value in np.percentile(measured, (10, 50, 90)))
    rate = Rate(
        worker="as timed" if basis == "calibration" else "as before",
        rows_per_second=middle,
        rows_per_second_interval=(slow, fast),
        seconds=rows / middle,
        seconds_interval=(rows / fast, rows / slow),
    )
    note = f"a worker with the model as busy as {where}: median, and 10th to 90th percentile"
    return TimeEstimate(basis=basis, note=note, receipts=len(measured), rates=(rate,))


def _by_arithmetic(rows: int, settings: RunSettings, source: ModelSource) -> TimeEstimate:
    # These take seconds to import, by way of torch.
    from wordmask.model.costs.flops import all_parameters
    from wordmask.model.costs.roofline import EFFICIENCY, SMALLEST, estimates
    from wordmask.model.costs.stages import Workload
    from wordmask.model.nn.moondream import read_config

    config = read_config(source.model.config_folder())
    if all_parameters(config) < SMALLEST:
        return _nothing("the model is small")
    segment = settings.segment
    if segment.deterministic:
        return _nothing("rows are to be deterministic")
    load = Workload(
        batch_rows=settings.batch_rows,
        refiner_iterations=segment.refiner_iterations,
        dtype=segment.dtype,
    )
    rates = tuple(
        Rate(
            worker=(
                f"{found.gpu}, {found.queries_per_image}"
                f" {'query' if found.queries_per_image == 1 else 'queries'} per image"
            ),
            rows_per_second=found.rows_per_second,
            seconds=rows / found.rows_per_second if found.rows_per_second else None,
        )
        for found in estimates(config, load)
    )
    note = (
        f"estimate, from arithmetic alone, never measured here: one GPU at {EFFICIENCY:.0%} of its"
        f" data sheet's peaks (assumed), images of {load.crops_per_image} crops, paths of"
        f" {load.path_tokens} tokens"
    )
    return TimeEstimate(basis="arithmetic", note=note, rates=rates)


def _nothing(why: str) -> TimeEstimate:
    note = (
        "nothing to estimate from: no shard of this output was done with this model and settings;"
        f" {why}, and arithmetic does not tell"
    )
    return TimeEstimate(basis="nothing", note=note)
