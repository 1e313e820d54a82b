"""What was interrupted is taken up, and what changed since the plan is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.folders import ROOT
from tests.support.runs import (
    GOOD,
    plan_of,
    publish_run,
    require_every_row_once,
    run_all,
    settings_for,
)
from tests.support.tables import png, read_rows, write_input
from wordmask.tasks import shard as shard_module
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.shard import ModelChangedError, process_shard
from wordmask.tasks.storage import Store
from wordmask.tasks.table.read import InputChangedError


def test_done_shards_are_skipped(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD] * 5, shard_rows=2)
    run_all(settings)
    plan = plan_of(settings, REVISION)
    assert plan.pending == ()
    assert len(plan.done) == 3


def test_an_input_replaced_after_planning_is_an_error(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD])
    plan = plan_of(settings, REVISION)
    write_input(tmp_path / "in.parquet", [GOOD, GOOD])
    with pytest.raises(InputChangedError, match="Run again"):
        process_shard(plan.shards[0], settings, ShardContext(FakeSegmenter()))


def test_another_model_than_the_planned_one_is_an_error(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [GOOD])
    with pytest.raises(ModelChangedError):
        process_shard(
            plan_of(settings, "planned").shards[0], settings, ShardContext(FakeSegmenter())
        )


KILL_BEFORE_RECEIPT = """
import os, sys
from wordmask.tasks.context import ShardContext
from wordmask.tasks.shard import process_shard
from wordmask.schemas.settings import RunSettings
from tests.support.runs import plan_of
from wordmask.tasks.storage import Store
from tests.support.fakes import REVISION, FakeSegmenter

settings = RunSettings.model_validate_json(sys.argv[1])
write = Store.write_bytes

def die_at_the_receipt(self, path, data):
    if path.startswith("receipts/"):
        os._exit(9)
    write(self, path, data)

Store.write_bytes = die_at_the_receipt
process_shard(plan_of(settings, REVISION).pending[0], settings, ShardContext(FakeSegmenter()))
"""


def test_a_shard_killed_between_parts_and_receipt_is_done_again(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, [GOOD | {"query": f"thing {i}"} for i in range(6)], shard_rows=3
    )
    command = [sys.executable, "-c", KILL_BEFORE_RECEIPT, settings.model_dump_json()]
    assert (
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode
        == 9
    )
    assert len(list((tmp_path / "out/masks").iterdir())) == 1
    assert not (tmp_path / "out/receipts").exists()
    written = {part.name: part.read_bytes() for part in (tmp_path / "out/masks").iterdir()}
    plan = run_all(settings)
    require_every_row_once(plan, settings)
    assert sorted(row["query"] for row in read_rows(tmp_path / "out", "masks")) == [
        f"thing {i}" for i in range(6)
    ]
    assert all(
        (tmp_path / "out/masks" / name).read_bytes() == data for name, data in written.items()
    )


def test_a_late_writer_of_the_same_shard_neither_loses_nor_doubles_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster gives the shard of a worker that it lost sight of to another worker.

    By then an image is gone. The first worker ends after the second.
    """
    (tmp_path / "a.png").write_bytes(png(1))
    settings = settings_for(tmp_path, [GOOD, GOOD | {"image": "a.png"}])
    plan = plan_of(settings, REVISION)
    (shard,) = plan.shards
    write_parts = shard_module.write_parts
    written: list[Any] = []

    def interrupted(*of_shard: Any) -> Any:
        """Between its parts and its receipt, the other does all of its work, and is published."""
        own = write_parts(*of_shard)
        written.append(own)
        if len(written) == 1:
            (tmp_path / "a.png").unlink()
            process_shard(shard, settings, ShardContext(FakeSegmenter()))
            publish_run(plan, settings)
        return own

    monkeypatch.setattr(shard_module, "write_parts", interrupted)
    process_shard(shard, settings, ShardContext(FakeSegmenter()))
    assert written[0] != written[1]
    assert verify_output(Store.open(settings.output)).holds
    require_every_row_once(plan, settings)
    assert [row["code"] for row in read_rows(settings.output, "rejects")] == ["image_not_found"], (
        "the published run is what it was"
    )


def test_a_written_file_and_its_name_outlast_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
    )
    Store.open(str(tmp_path)).write_bytes("runs/a.json", b"{}")
    assert [name.rsplit(".", 1)[0] for name in synced] == [".a.json", "runs"]


def test_a_write_whose_reply_was_lost_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store._put

    def put_and_lose_the_reply(self: Store, path: str, data: bytes) -> None:
        put(self, path, data)
        raise OSError("connection reset by peer")

    monkeypatch.setattr(Store, "_put", put_and_lose_the_reply)
    settings = settings_for(tmp_path, [GOOD])
    plan = run_all(settings)
    require_every_row_once(plan, settings)


def test_a_write_that_never_succeeds_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Store, path: str, data: bytes) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Store, "_put", refuse)
    with pytest.raises(OSError, match="no space left"):
        run_all(settings_for(tmp_path, [GOOD]))
