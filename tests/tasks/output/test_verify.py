"""Verification finds rows that are lost, doubled, unplanned or unreadable."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.runs import (
    GOOD,
    run_all,
    settings_for,
)
from tests.support.tables import part_of
from wordmask.tasks.output.verify import AccountingError, require, verify
from wordmask.tasks.storage import Store


def test_verify_sees_a_lost_a_doubled_and_an_unplanned_row(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD] * 4)
    plan = run_all(settings)
    (shard,) = plan.shards
    part = part_of(tmp_path / "out", "masks", shard.shard_id)
    table = pq.read_table(part)
    pq.write_table(table.take([0, 1, 1, 3]), part)
    report = verify(plan, Store.open(settings.output))
    assert len(report.violations) == 2
    with pytest.raises(AccountingError, match="row 1 occurs 2 times"):
        require(report)
    pq.write_table(table.set_column(1, "row", [[0, 1, 2, 9]]), part)
    assert any(
        "never planned" in violation
        for violation in verify(plan, Store.open(settings.output)).violations
    )


def test_verify_sees_missing_parts_and_receipts(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD] * 4, shard_rows=2)
    plan = run_all(settings)
    first, second = plan.shards
    part_of(tmp_path / "out", "rejects", first.shard_id).unlink()
    (tmp_path / "out" / "receipts" / f"{second.shard_id}.json").unlink()
    violations = verify(plan, Store.open(settings.output)).violations
    assert len(violations) == 2
    assert "is missing" in violations[0]
    assert "has no receipt" in violations[1]


def test_verify_sees_damaged_parts(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD] * 2)
    plan = run_all(settings)
    part = part_of(tmp_path / "out", "masks", plan.shards[0].shard_id)
    data = part.read_bytes()
    for damaged in (b"", data[:50], data[:-60] + b"\xff" * 52 + data[-8:]):
        part.write_bytes(damaged)
        (violation,) = verify(plan, Store.open(settings.output)).violations
        assert "cannot be read" in violation
