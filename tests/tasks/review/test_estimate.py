"""Estimates of time and cost: from receipts where there are any, else by arithmetic, else none."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import tiny_config
from wordmask.model.costs.roofline import estimates
from wordmask.model.costs.stages import Workload
from wordmask.model.hub.registry import Location, ModelError, ModelSource, resolve_model
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.schemas.runs import Part, Plan, Receipt, RowRange, Shard, Timings
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import receipt_path
from wordmask.tasks.review import estimate
from wordmask.tasks.review.estimate import TimeEstimate, estimate_time
from wordmask.tasks.storage import Store

MODEL = "m"


def shard(number: int, rows: int = 100, **changed: Any) -> Shard:
    known = {
        "model_revision": MODEL,
        "settings_hash": RunSettings(input="in", output="out").segment.settings_hash,
    }
    return Shard(
        shard_id=f"{number:032x}",
        file="f",
        name="n",
        fingerprint="p",
        ranges=(RowRange(0, 0, rows),),
        first_row=0,
        **known | changed,
    )


def write_receipt(output: Store, of: Shard, seconds: float, *, changed_at: float = 1.0) -> None:
    part = Part(path="p", rows=of.rows, bytes=1, sha256="s")
    receipt = Receipt(
        shard=of,
        masks=of.rows,
        absent=0,
        rejects={},
        masks_part=part,
        rejects_part=part,
        worker="w",
        started_at="",
        timings=Timings(read=0.0, infer=seconds, write=0.0, total=2 * seconds),
    )
    output.write_bytes(receipt_path(of.shard_id), receipt.model_dump_json().encode())
    os.utime(output.full(receipt_path(of.shard_id)), (changed_at, changed_at))


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def estimated(
    output: Store,
    source: ModelSource | None = None,
    *,
    done: tuple[Shard, ...] = (),
    price: float | None = None,
    calibrated: Sequence[Receipt] = (),
    **options: Any,
) -> TimeEstimate:
    """The estimate of two pending shards, 150 rows."""
    shards = (*done, shard(1001), shard(1002, rows=50))
    plan = Plan(
        run_id="r",
        shards=shards,
        done=frozenset(one.shard_id for one in done),
        files=1,
        input_bytes=1,
    )
    settings = RunSettings.model_validate({"input": "in", "output": output.root, **options})
    return estimate_time(
        plan,
        settings,
        source or model_at("demo", None),
        output,
        price_per_hour=price,
        calibrated=calibrated,
    )


def model_at(name: str, path: Path | None) -> ModelSource:
    return ModelSource(name=name, model=Location(name=name, path=path, revision=MODEL))


def local_model(folder: Path, config: dict[str, Any]) -> ModelSource:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return model_at(str(folder), folder)


def test_receipts_of_the_same_model_and_settings_give_median_and_interval(output: Store) -> None:
    for number in range(11):
        write_receipt(output, shard(number), seconds=100 / (10 + number))  # 10, 11, ... 20 rows/s
    for number, changed in enumerate(
        ({"model_revision": "other"}, {"settings_hash": "other"}), start=20
    ):
        write_receipt(output, shard(number, **changed), seconds=1e-3)
    found = estimated(output)
    assert (found.basis, found.receipts) == ("receipts", 11)
    (rate,) = found.rates
    assert rate.rows_per_second == pytest.approx(15)
    assert rate.rows_per_second_interval == pytest.approx((11, 19))
    assert rate.seconds == pytest.approx(150 / 15)
    assert rate.seconds_interval == pytest.approx((150 / 19, 150 / 11))


def test_workers_share_the_time_and_a_price_makes_it_a_cost(output: Store) -> None:
    for number in range(11):
        write_receipt(output, shard(number), seconds=100 / (10 + number))
    (rate,) = estimated(output, workers=3, price=7.2).rates
    assert rate.rows_per_second == pytest.approx(15), "of one worker"
    assert rate.seconds == pytest.approx(150 / 15 / 3)
    assert rate.cost == pytest.approx(150 / 15 / 3 * 7.2 / 3600)
    assert rate.cost_interval == pytest.approx((150 / 19 / 3 * 0.002, 150 / 11 / 3 * 0.002))
    assert estimated(output).rates[0].cost is None


def test_calibrated_receipts_count_rather_than_those_of_the_output(output: Store) -> None:
    write_receipt(output, shard(1), seconds=10)
    write_receipt(output, shard(2), seconds=100 / 40)
    found = estimated(
        output,
        calibrated=[
            Receipt.model_validate_json(output.read_bytes(receipt_path(shard(2).shard_id)))
        ],
    )
    assert (found.basis, found.receipts, found.rates[0].rows_per_second) == ("calibration", 1, 40)


def test_shards_with_copied_rows_are_no_measure(output: Store) -> None:
    write_receipt(output, shard(1), seconds=10)
    write_receipt(output, shard(2), seconds=0.1)
    receipt = Receipt.model_validate_json(
        output.read_bytes(receipt_path(shard(2).shard_id))
    ).model_copy(update={"copied": 99})
    output.write_bytes(receipt_path(shard(2).shard_id), receipt.model_dump_json().encode())
    found = estimated(output)
    assert (found.receipts, found.rates[0].rows_per_second) == (1, 10)


def test_receipts_of_other_settings_or_versions_are_left_out(output: Store) -> None:
    write_receipt(output, shard(1), seconds=10)
    write_receipt(output, shard(2), seconds=0)
    write_receipt(output, shard(3, rows=0), seconds=1)
    output.write_bytes(receipt_path("old"), b'{"shard": "of another version"}')
    output.write_bytes("receipts/.partial.json", b"{")
    found = estimated(output)
    assert (found.receipts, found.rates[0].rows_per_second) == (1, 10)


def test_only_the_newest_are_read_and_those_of_the_plan_first(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "NEWEST", 3)
    for number in range(9):
        write_receipt(output, shard(number), seconds=100 / (1 + number), changed_at=1e9 + number)
    read: list[str] = []
    read_bytes = Store.read_bytes
    monkeypatch.setattr(
        Store, "read_bytes", lambda self, path: read.append(path) or read_bytes(self, path)
    )
    found = estimated(output, done=(shard(0),))
    assert set(read) == {receipt_path(shard(number).shard_id) for number in (0, 7, 8)}
    assert found.rates[0].rows_per_second == pytest.approx(np.median([1, 8, 9]))


def test_without_receipts_the_full_size_is_estimated_by_arithmetic_and_says_so(
    output: Store, tmp_path: Path
) -> None:
    source = local_model(tmp_path / "model", {})
    found = estimated(
        output, source, segment={"dtype": "bfloat16", "refiner_iterations": 2}, batch_rows=16
    )
    assert (found.basis, found.receipts) == ("arithmetic", 0)
    assert "estimate, from arithmetic alone, never measured here" in found.note
    assert "50%" in found.note, "the assumed share of the peaks is told"
    expected = estimates(
        MoondreamSegmentationConfig(), Workload(batch_rows=16, refiner_iterations=2)
    )
    assert [rate.rows_per_second for rate in found.rates] == [
        one.rows_per_second for one in expected
    ]
    assert [rate.seconds for rate in found.rates] == [150 / one.rows_per_second for one in expected]
    assert [rate.worker for rate in found.rates[:2]] == [
        "H100 SXM, 1 query per image",
        "H100 SXM, 8 queries per image",
    ]


def test_a_gpu_that_cannot_hold_the_model_has_no_time(output: Store, tmp_path: Path) -> None:
    found = estimated(output, local_model(tmp_path / "model", {}), segment={"dtype": "float32"})
    assert {rate.worker: rate.seconds for rate in found.rates}["L4, 1 query per image"] is None


def test_small_models_are_not_estimated_by_arithmetic(output: Store, tmp_path: Path) -> None:
    for source in (resolve_model("demo"), local_model(tmp_path / "tiny", tiny_config().to_dict())):
        found = estimated(output, source)
        assert (found.basis, found.rates) == ("nothing", ())
        assert "nothing to estimate from" in found.note


def test_deterministic_runs_are_not_estimated_by_arithmetic(output: Store, tmp_path: Path) -> None:
    found = estimated(output, local_model(tmp_path / "model", {}), segment={"deterministic": True})
    assert (found.basis, found.rates) == ("nothing", ())


def test_a_model_without_configuration_is_named(output: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        estimated(output, model_at("m", tmp_path))
