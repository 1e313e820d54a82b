"""An answer belongs to all that it depends on: what changes is computed anew, the rest is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import carry_out, plan_of, settings_for
from tests.support.tables import png, read_rows
from wordmask.schemas import method
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.shard import ModelChangedError, process_shard
from wordmask.tasks.storage import Store


def rows(count: int, **other: Any) -> list[dict[str, Any]]:
    return [
        {"row_id": f"r{number}", "image": png(number % 3), "query": f"thing {number}"} | other
        for number in range(count)
    ]


def night(settings: RunSettings) -> list[str]:
    """Carry out a run, and return the words that the model was asked about."""
    asked, _ = carry_out(plan_of(settings, REVISION), settings)
    return asked


def upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "METHOD_VERSION", method.METHOD_VERSION + 1)


def versions(settings: RunSettings, kind: str) -> set[int | None]:
    return {row["method_version"] for row in read_rows(settings.output, kind)}


def test_an_upgrade_in_the_middle_of_a_table_ends_with_one_version_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [*rows(7), {"row_id": "empty", "image": png(), "query": ""}]
    settings = settings_for(tmp_path, table, shard_rows=4)
    first, _ = plan_of(settings, REVISION).pending
    process_shard(first, settings, ShardContext(FakeSegmenter()))
    upgrade(monkeypatch)
    assert len(night(settings)) == 7
    assert versions(settings, "masks") == versions(settings, "rejects") == {method.METHOD_VERSION}


def test_no_answer_of_another_version_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(settings_for(tmp_path, rows(4)))
    upgrade(monkeypatch)
    assert len(night(settings_for(tmp_path, rows(5)))) == 5


def test_no_answer_of_a_part_without_a_version_is_copied(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rows(4))
    night(settings)
    for part in Path(settings.output, "masks").iterdir():
        pq.write_table(pq.read_table(part).drop_columns("method_version"), part)
    assert len(night(settings_for(tmp_path, rows(5)))) == 5


def test_rows_of_a_run_by_another_version_are_not_retried_among_its_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, [*rows(1), {"image": "late.png", "query": "a thing"}])
    night(settings)
    upgrade(monkeypatch)
    with pytest.raises(InputError, match="made by method version 1, and this code has 2"):
        retry_plan(Store.open(settings.output), (RejectCode.IMAGE_NOT_FOUND,))


def test_a_worker_with_code_of_another_version_does_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, rows(1))
    (shard,) = plan_of(settings, REVISION).pending
    upgrade(monkeypatch)
    with pytest.raises(ModelChangedError, match=r"planned with method version 1.*has 2"):
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    assert not Path(settings.output).exists()
