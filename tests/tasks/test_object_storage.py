"""The pipeline on a real S3-compatible server: folders, reruns, and replaced files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import wordmask
from tests.faults.proxy import Fault, FaultProxy
from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, publish_run, require_every_row_once
from tests.support.tables import png, write_input
from wordmask.schemas.settings import RunSettings
from wordmask.tasks import storage
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output.catalog import (
    latest_receipts,
    newest_run,
    read_receipt,
    read_receipts,
    status,
)
from wordmask.tasks.output.verify import verify, verify_output
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import READ_ATTEMPTS, STORE_ERRORS, Store
from wordmask.tasks.table.read import InputChangedError

ROWS = [{"image": png(seed), "query": f"thing {seed}"} for seed in range(5)]


@pytest.fixture
def lake(s3: str) -> Store:
    """An empty folder of the bucket."""
    return Store.open(f"{s3}/{uuid4().hex}")


def settings_of(lake: Store, input: str = "in") -> RunSettings:
    return RunSettings(
        input=f"s3://{lake.root}/{input}", output=f"s3://{lake.root}/out", shard_rows=2
    )


def put_table(lake: Store, name: str, rows: list[dict[str, object]], tmp_path: Path) -> None:
    lake.write_bytes(name, Path(write_input(tmp_path / "table.parquet", rows)).read_bytes())


def test_a_folder_from_plan_to_published_and_again(lake: Store, tmp_path: Path) -> None:
    put_table(lake, "in/a.parquet", ROWS, tmp_path)
    put_table(
        lake,
        "in/deep/b.parquet",
        [{"image": "c.png", "query": "x"}, {"image": "d.png", "query": "x"}],
        tmp_path,
    )
    lake.write_bytes("in/deep/c.png", png(9))
    settings = settings_of(lake)
    plan = plan_of(settings, REVISION)
    assert [(shard.name, shard.rows) for shard in plan.shards] == [("a.parquet", 2)] * 2 + [
        ("a.parquet", 1),
        ("deep/b.parquet", 2),
    ]
    for shard in plan.pending:
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    require_every_row_once(plan, settings)
    publish_run(plan, settings)
    output = Store.open(settings.output)
    assert (newest_run(output).masks, newest_run(output).rejects) == (6, {"image_not_found": 1})
    assert status(Store.open(settings.output)).unpublished == 0
    assert wordmask.open_masks(settings.output).count_rows() == 6
    assert verify_output(output).holds

    written = read_receipts(output, latest_receipts(output))
    assert plan_of(settings, REVISION).pending == ()
    for shard in plan.shards:
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    again = read_receipts(output, latest_receipts(output))
    assert {receipt.parts for receipt in again} == {receipt.parts for receipt in written}
    assert len(output.names("masks", ".parquet")) == len(written)


@pytest.fixture
def proxy(lake: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What stores that are opened after this reach the server through."""
    monkeypatch.setattr(storage, "READ_PAUSE", 0.001)
    made = FaultProxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "request_line"),
    [
        ("reset_during", r"GET .*prefix=.*"),
        ("reset_during", r"GET .*a\.parquet.*"),
        ("truncated", r"GET .*a\.parquet.*"),
    ],
)
def test_a_read_whose_reply_breaks_off_is_repeated(
    kind: str, request_line: str, lake: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    put_table(lake, "in/a.parquet", ROWS, tmp_path)
    settings = settings_of(lake)
    proxy.faults = [Fault(request=request_line, kind=kind, times=3)]
    plan = plan_of(settings, REVISION)
    assert proxy.faults[0].happened == 3
    proxy.faults = [Fault(request=r"GET .*", kind=kind, times=3)]
    receipts = [
        process_shard(shard, settings, ShardContext(FakeSegmenter())) for shard in plan.pending
    ]
    assert proxy.faults[0].happened == 3
    assert sum(receipt.masks for receipt in receipts) == len(ROWS)
    require_every_row_once(plan, settings)


def test_a_store_whose_replies_all_break_off_is_at_fault(lake: Store, proxy: FaultProxy) -> None:
    lake.write_bytes("a.json", b"{}")
    proxy.faults = [Fault(request=r"GET .*a\.json.*", kind="reset_during", times=100)]
    with pytest.raises(STORE_ERRORS):
        Store.open(f"s3://{lake.root}").read_bytes("a.json")
    assert READ_ATTEMPTS <= proxy.faults[0].happened < 100


def test_globs_find_the_same_shards_as_the_folder(lake: Store, tmp_path: Path) -> None:
    for name in ("a", "b", "_c"):
        put_table(lake, f"in/{name}.parquet", ROWS[:1], tmp_path)
    whole = plan_of(settings_of(lake), REVISION)
    for pattern in ("in/*.parquet", "in/?.parquet", "in/[ab].parquet"):
        assert plan_of(settings_of(lake, pattern), REVISION).shards == whole.shards
    assert [shard.name for shard in whole.shards] == ["a.parquet", "b.parquet"]


def test_a_replaced_object_is_noticed_and_planned_anew(lake: Store, tmp_path: Path) -> None:
    put_table(lake, "in/a.parquet", ROWS, tmp_path)
    settings = settings_of(lake)
    before = plan_of(settings, REVISION)
    process_shard(before.shards[0], settings, ShardContext(FakeSegmenter()))
    put_table(lake, "in/a.parquet", ROWS[::-1], tmp_path)
    with pytest.raises(InputChangedError, match="Run again"):
        process_shard(before.shards[1], settings, ShardContext(FakeSegmenter()))
    after = plan_of(settings, REVISION)
    assert after.done == frozenset()
    assert {shard.shard_id for shard in before.shards}.isdisjoint(
        shard.shard_id for shard in after.shards
    )


def test_verify_sees_a_lost_row_in_the_bucket(lake: Store, tmp_path: Path) -> None:
    put_table(lake, "in/a.parquet", ROWS, tmp_path)
    settings = settings_of(lake)
    plan = plan_of(settings, REVISION)
    for shard in plan.pending:
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    output = Store.open(settings.output)
    receipt = read_receipt(output, plan.shards[1].shard_id, 0)
    assert receipt is not None
    output.remove(receipt.masks_part.path)
    (violation,) = verify(plan, Store.open(settings.output)).violations
    assert plan.shards[1].shard_id in violation
    assert "is missing" in violation


def test_files_of_another_writer_are_seen(lake: Store, tmp_path: Path) -> None:
    put_table(lake, "in/a.parquet", ROWS[:1], tmp_path)
    settings = settings_of(lake)
    assert plan_of(settings, REVISION).files == 1
    elsewhere = type(lake.fs)(**lake.fs.storage_options, skip_instance_cache=True)
    elsewhere.pipe_file(lake.full("in/b.parquet"), (tmp_path / "table.parquet").read_bytes())
    assert plan_of(settings, REVISION).files == 2


def test_names_are_sorted_by_their_last_change(lake: Store) -> None:
    for name in ("b", "a", ".hidden", "c"):
        lake.write_bytes(f"receipts/{name}.json", name.encode())
    assert (
        set(lake.newest("receipts", ".json")) == lake.names("receipts", ".json") == {"a", "b", "c"}
    )
    assert lake.newest("nowhere", ".json") == []
