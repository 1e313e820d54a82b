"""Scenarios of inputs that change or are listed in part."""

from __future__ import annotations

from itertools import count

from tests.faults.bucket import Bucket, RunEnd, table_bytes
from tests.faults.proxy import Fault
from tests.faults.scenario import RECEIPTS, Scenario
from tests.support.tables import png

LISTING = r"GET /lake/?\?(?=.*list-type=2).*prefix=in.*"


def input_replaced(bucket: Bucket) -> RunEnd:
    """Put another table under the same name, once a shard is done."""
    new = table_bytes(bucket.rows(12, words="changed"))
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: bucket.put("in/table.parquet", new) or True,
    )
    return bucket.run(faults=[fault])


def input_deleted(bucket: Bucket) -> RunEnd:
    """Delete the table for the rest of the run, and put it back afterwards."""
    data = table_bytes(bucket.rows(12))
    fault = Fault(
        request=RECEIPTS,
        kind="call",
        call=lambda _pid: bucket.delete("in/table.parquet") or True,
    )
    end = bucket.run(faults=[fault])
    bucket.put("in/table.parquet", data)
    return end


def image_overwritten(bucket: Bucket) -> RunEnd:
    """Put another image behind a URI of the table, which stays as it is, after a whole run."""
    for number in range(4):
        bucket.put(f"in/{number}.png", png(number))
    rows = bucket.rows(12)
    for number, row in enumerate(rows):
        row["image"] = f"{number % 4}.png"
    end = bucket.run(rows=rows)
    bucket.put("in/1.png", png(9))
    return end


def listed_in_part(bucket: Bucket) -> RunEnd:
    """Leave one file of three out of what the store lists, after a whole run over them."""
    _put_tables(bucket, "a", "b", "c")
    first = bucket.run()
    assert first.code == 0, f"the first run failed: {first.report}"
    fault = Fault(request=LISTING, kind="listed_in_part", times=10**9, key="in/b.parquet")
    end = bucket.run(faults=[fault])
    assert fault.happened, f"no listing lacked the file: {end}"
    return end


def rewritten_at_each_receipt(bucket: Bucket) -> RunEnd:
    """Write another version of one file of two whenever a shard is done, after a whole run."""
    _put_tables(bucket, "a", "b")
    first = bucket.run()
    assert first.code == 0, f"the first run failed: {first.report}"
    versions = count(1)

    def rewrite(_pid: int) -> bool:
        rows = bucket.rows(24, words=f"version {next(versions)}")
        bucket.put("in/b.parquet", table_bytes(rows))
        return True

    rewrite(0)
    fault = Fault(request=RECEIPTS, kind="call", call=rewrite, times=10**9)
    end = bucket.run(faults=[fault])
    assert fault.happened > 1, f"the file was not rewritten: {end}"
    kept = [file["name"] for file in end.report.get("kept", ())]
    assert kept == ["b.parquet"], f"not published as it was before: {end}"
    return end


def _put_tables(bucket: Bucket, *names: str) -> None:
    """Make a folder of tables of six rows the input."""
    bucket.input = "s3://lake/in"
    for name in names:
        bucket.put(f"in/{name}.parquet", table_bytes(bucket.rows(6, words=name)))


INPUT_SCENARIOS = (
    Scenario(
        name="input deleted in the middle of a run", disturb=input_deleted, ends="table.parquet"
    ),
    Scenario(
        name="input replaced in the middle of a run",
        disturb=input_replaced,
        leaves_parts=True,
    ),
    Scenario(
        name="an image replaced behind an unchanged URI",
        disturb=image_overwritten,
        repeat={"check_images": True},
        leaves_parts=True,
    ),
    Scenario(
        name="a listing that lacks a file",
        disturb=listed_in_part,
        ends="files that are not there now",
    ),
    Scenario(
        name="a file rewritten at each receipt",
        disturb=rewritten_at_each_receipt,
        leaves_parts=True,
    ),
)
