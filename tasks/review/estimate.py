"""The time and cost of the rest of a plan: from receipts of shards done before, else by arithmetic.

Only the newest receipts are read, so that planning stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from wordmask.model.hub.registry import DEMO, ModelSource
from wordmask.schemas.runs import Plan, Receipt
from wordmask.schemas.settings import Frozen, RunSettings
from wordmask.tasks.output.catalog import newest_receipts, read_receipts
from wordmask.tasks.storage import Store

if TYPE_CHECKING:
    from wordmask.model.costs.roofline import Estimate

NEWEST = 50  # receipts that are read
READS_AT_ONCE = 16

Interval = tuple[float, float]
Basis = Literal["receipts", "calibration", "arithmetic", "nothing"]


class Rate(Frozen):
    """The speed of one worker, and the seconds that the pending rows take all workers together.

    `cost` is in dollars, at a price. `seconds` is None if the worker cannot run the model at all.
    Intervals are from the 10th to the 90th percentile of what shards took; arithmetic has none.
    """

    worker: str
    rows_per_second: float
    rows_per_second_interval: Interval | None = None
    seconds: float | None
    seconds_interval: Interval | None = None
    cost: float | None = None
    cost_interval: Interval | None = None

    def shared(self, workers: int, price_per_hour: float | None) -> Rate:
        """Return the rate of so many workers, which cost so many dollars an hour together."""
        changes: dict[str, float | Interval | None] = {
            "seconds": _scaled(self.seconds, 1 / workers),
            "seconds_interval": _scaled_interval(self.seconds_interval, 1 / workers),
        }
        if price_per_hour is not None:
            dollars = price_per_hour / 3600 / workers
            changes["cost"] = _scaled(self.seconds, dollars)
            changes["cost_interval"] = _scaled_interval(self.seconds_interval, dollars)
        return self.model_copy(update=changes)


def _scaled(value: float | None, factor: float) -> float | None:
    if value is None:
        return None
    return value * factor


def _scaled_interval(interval: Interval | None, factor: float) -> Interval | None:
    if interval is None:
        return None
    low, high = interval
    return low * factor, high * factor


class TimeEstimate(Frozen):
    """Rates, and where they come from.

    `basis` says what they follow from, `note` the same for people, with everything that was
    assumed.
    """

    basis: Basis
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
    """Return the time and cost of the plan's pending shards.

    Args:
        plan: the plan.
        settings: its settings; without a number of workers the estimate is for one.
        source: its model.
        output: its output, whose receipts tell how long shards took.
        calibrated: receipts to go by rather than by those of the output.
        price_per_hour: dollars, of all workers together.

    Raises:
        ModelError: there are no receipts to go by, and the model has no configuration to calculate
            with.
    """
    workers = settings.workers or 1
    found = _of_one_worker(plan, settings, source, output, calibrated)
    rates = tuple(rate.shared(workers, price_per_hour) for rate in found.rates)
    note = found.note
    if plan.hints and rates:
        note = f"{note}; rows that are copied from earlier answers take less"
    if workers > 1:
        note = f"{workers} workers: {note}"
    return found.model_copy(update={"workers": workers, "rates": rates, "note": note})


def _of_one_worker(
    plan: Plan,
    settings: RunSettings,
    source: ModelSource,
    output: Store,
    calibrated: Sequence[Receipt],
) -> TimeEstimate:
    rows = sum(shard.rows for shard in plan.pending)
    speeds = _speeds(calibrated)
    if speeds:
        where = "in the shards just timed, which are done now; workers that had just begun"
        return _from_receipts(speeds, rows, "calibration", where)
    speeds = _speeds(_comparable_receipts(plan, settings, plan.model_revision, output))
    if speeds:
        where = "in shards of this output done before with the same model and settings"
        return _from_receipts(speeds, rows, "receipts", where)
    if source.name == DEMO:
        return _nothing("the default model is small")
    return _by_arithmetic(rows, settings, source)


def _speeds(receipts: Iterable[Receipt]) -> list[float]:
    """Return rows a second. A shard with copied rows is left out, as they are no measure."""
    speeds = []
    for receipt in receipts:
        seconds = receipt.timings.infer + receipt.timings.idle
        if receipt.rows and seconds > 0 and not receipt.copied:
            speeds.append(receipt.rows / seconds)
    return speeds


def _comparable_receipts(
    plan: Plan, settings: RunSettings, model_revision: str, output: Store
) -> list[Receipt]:
    """Return receipts of the same model and settings.

    Those of this input come before others, new ones before old ones.
    """
    newest = newest_receipts(output).items()
    first = sorted(newest, key=lambda item: item[0] not in plan.done)[:NEWEST]
    receipts = read_receipts(output, dict(first))
    same = (model_revision, settings.segment.settings_hash)
    return [
        receipt
        for receipt in receipts
        if (receipt.shard.model_revision, receipt.shard.settings_hash) == same
    ]


def _from_receipts(speeds: list[float], rows: int, basis: Basis, where: str) -> TimeEstimate:
    slow, middle, fast = (float(value) for value in np.percentile(speeds, (10, 50, 90)))
    rate = Rate(
        worker="as timed" if basis == "calibration" else "as before",
        rows_per_second=middle,
        rows_per_second_interval=(slow, fast),
        seconds=rows / middle,
        seconds_interval=(rows / fast, rows / slow),
    )
    note = f"a worker with the model as busy as {where}: median, and 10th to 90th percentile"
    return TimeEstimate(basis=basis, note=note, receipts=len(speeds), rates=(rate,))


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
    rates = tuple(_calculated_rate(found, rows) for found in estimates(config, load))
    note = (
        f"estimate, from arithmetic alone, never measured here: one GPU at {EFFICIENCY:.0%} of its"
        f" data sheet's peaks (assumed), images of {load.crops_per_image} crops, paths of"
        f" {load.path_tokens} tokens"
    )
    return TimeEstimate(basis="arithmetic", note=note, rates=rates)


def _calculated_rate(found: Estimate, rows: int) -> Rate:
    seconds = None
    if found.rows_per_second:
        seconds = rows / found.rows_per_second
    noun = "query" if found.queries_per_image == 1 else "queries"
    return Rate(
        worker=f"{found.gpu}, {found.queries_per_image} {noun} per image",
        rows_per_second=found.rows_per_second,
        seconds=seconds,
    )


def _nothing(why: str) -> TimeEstimate:
    note = (
        "nothing to estimate from: no shard of this output was done with this model and settings;"
        f" {why}, and arithmetic does not tell"
    )
    return TimeEstimate(basis="nothing", note=note)
