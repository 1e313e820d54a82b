"""A receipt that is written late, or whose part is gone, changes nothing that was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import REVISION
from tests.support.runs import (
    GOOD,
    compute,
    compute_again,
    plan_of,
    publish_run,
    require_every_row_once,
    settings_for,
)
from tests.support.tables import png, read_rows
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Plan
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import latest_receipts, read_receipt
from wordmask.tasks.output.garbage import find_garbage, remove_files
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.storage import Store


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    """Of a run over a row whose image is in a file of its own."""
    (tmp_path / "a.png").write_bytes(png(1))
    return settings_for(tmp_path, [GOOD, {"image": "a.png", "query": "another thing"}])


def night(settings: RunSettings, fence: int = 0) -> Plan:
    """Plan, compute, verify and publish a run; return its plan."""
    plan = plan_of(settings, REVISION).model_copy(update={"fence": fence})
    compute(plan, settings)
    require_every_row_once(plan, settings)
    publish_run(plan, settings)
    return plan


def write_late(plan: Plan, settings: RunSettings, tmp_path: Path) -> None:
    """Let a worker that the run gave up end its copy of each shard: an image is gone by then."""
    (tmp_path / "a.png").unlink()
    receipts = compute_again(plan, settings)
    assert receipts[0].rejects == {"image_not_found": 1}


@pytest.mark.parametrize("fence", [0, 4])
def test_a_late_worker_turns_no_published_mask_into_a_reject(
    settings: RunSettings, tmp_path: Path, fence: int
) -> None:
    plan = night(settings, fence)
    before = read_rows(settings.output, "masks")
    assert len(before) == 2
    write_late(plan, settings, tmp_path)
    second = night(settings, fence + 1)
    assert second.pending == ()
    assert read_rows(settings.output, "masks") == before
    assert verify_output(Store.open(settings.output)).holds


def test_a_late_worker_changes_nothing_of_an_earlier_run_whose_settings_come_back(
    settings: RunSettings, tmp_path: Path
) -> None:
    plan = night(settings)
    before = read_rows(settings.output, "masks")
    other = settings.segment.model_copy(update={"refiner_iterations": 1})
    night(settings.model_copy(update={"segment": other}))
    write_late(plan, settings, tmp_path)
    assert night(settings).pending == ()
    assert read_rows(settings.output, "masks") == before


def test_a_receipt_between_verification_and_publication_stops_no_later_night(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Store.open(settings.output)
    plan = plan_of(settings, REVISION)
    compute(plan, settings)
    write = Store.write_bytes
    late: list[Any] = []

    def write_after_the_late_worker(store: Store, path: str, data: bytes) -> None:
        if path.startswith("manifests/") and not late:
            late.append(path)
            write_late(plan, settings, tmp_path)
        write(store, path, data)

    monkeypatch.setattr(Store, "write_bytes", write_after_the_late_worker)
    publish_run(plan, settings)
    assert late
    before = read_rows(settings.output, "masks")
    assert len(before) == 2
    found = find_garbage(output)
    assert [path.split("/")[0] for path in found.paths] == ["masks", "rejects"], "the late parts"
    remove_files(output, found.files, lambda: None)
    assert night(settings).pending == ()
    assert read_rows(settings.output, "masks") == before
    assert verify_output(output).holds


def test_a_late_worker_of_an_earlier_run_replaces_no_receipt_of_a_later_one(
    settings: RunSettings, tmp_path: Path
) -> None:
    plan = plan_of(settings, REVISION)
    later = plan.model_copy(update={"fence": 8})
    (receipt,) = compute(later, settings)
    write_late(plan.model_copy(update={"fence": 7}), settings, tmp_path)
    output = Store.open(settings.output)
    shard_id = receipt.shard.shard_id
    assert latest_receipts(output) == {shard_id: 8}
    assert read_receipt(output, shard_id, 8) == receipt
    publish_run(plan_of(settings, REVISION), settings)
    assert len(read_rows(settings.output, "masks")) == 2


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_shard_whose_part_is_gone_or_cut_short_is_computed_again(
    settings: RunSettings, tmp_path: Path, published: bool, damage: str
) -> None:
    plan = plan_of(settings, REVISION)
    compute(plan, settings)
    if published:
        publish_run(plan, settings)
    (part,) = (tmp_path / "out/masks").iterdir()
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    again = night(settings)
    assert [shard.shard_id for shard in again.pending] == [plan.shards[0].shard_id]
    assert verify_output(Store.open(settings.output)).holds
    assert night(settings).pending == ()


def test_an_unreadable_receipt_is_none(settings: RunSettings, tmp_path: Path) -> None:
    compute(plan_of(settings, REVISION), settings)
    (receipt,) = (tmp_path / "out/receipts").iterdir()
    receipt.write_bytes(receipt.read_bytes()[:40])
    assert len(night(settings).pending) == 1


def test_a_stopped_retry_is_taken_up_by_the_next_retry_and_by_no_run(
    tmp_path: Path,
) -> None:
    rows = [GOOD, *({"image": f"{name}.png", "query": "a thing"} for name in "ab")]
    settings = settings_for(tmp_path, rows, shard_rows=1)
    night(settings, 1)
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(3))
    output = Store.open(settings.output)
    codes = (RejectCode.IMAGE_NOT_FOUND,)
    stopped, retried = retry_plan(output, codes)
    assert len(stopped.pending) == 2
    only_first = {"fence": 2, "shards": stopped.shards[:2]}
    compute(stopped.model_copy(update=only_first), retried)

    assert night(settings, 3).pending == ()
    assert len(read_rows(settings.output, "masks")) == 1

    stopped, retried = retry_plan(output, codes)
    assert len(stopped.pending) == 2, "what was done before a publication is of no more use"
    compute(stopped.model_copy(update=only_first | {"fence": 4}), retried)
    plan, retried = retry_plan(output, codes)
    assert len(plan.pending) == 1
    plan = plan.model_copy(update={"fence": 5})
    compute(plan, retried)
    publish_run(plan, retried)
    assert len(read_rows(settings.output, "masks")) == 3
    assert verify_output(output).holds
