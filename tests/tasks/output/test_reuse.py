"""Reuse of answers: equal rows of a changed file, and the rows beside rejects that are retried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import REVISION, Counting, FakeSegmenter
from tests.support.runs import carry_out, plan_of, publish_run
from tests.support.tables import part_of, png, read_rows, write_input
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Plan, Receipt, ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output.catalog import PART_KINDS
from wordmask.tasks.output.results import rejected
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.shard import NO_HINTS, process_shard
from wordmask.tasks.storage import Store


def table(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> RunSettings:
    write_input(tmp_path / "in.parquet", [row | {"split": f"of {row['row_id']}"} for row in rows])
    segment = {"carry": ("split",)} | options.pop("segment", {})
    base = {
        "input": str(tmp_path / "in.parquet"),
        "output": str(tmp_path / "out"),
        "shard_rows": 4,
        "segment": segment,
    }
    return RunSettings.model_validate(base | options)


def run(settings: RunSettings, revision: str = REVISION) -> tuple[list[str], list[Receipt]]:
    return carry_out(plan_of(settings, revision), settings)


def row(number: int, **other: Any) -> dict[str, Any]:
    return {"row_id": f"r{number}", "image": png(number % 3), "query": f"thing {number}"} | other


def bytes_of(output: Path, kind: str, plan: Plan) -> dict[str, bytes]:
    return {
        shard.shard_id: part_of(output, kind, shard.shard_id).read_bytes() for shard in plan.shards
    }


def test_only_the_new_rows_of_a_changed_file_are_computed(tmp_path: Path) -> None:
    rows = [row(number) for number in range(10)]
    assert len(run(table(tmp_path, rows))[0]) == 10
    changed = [
        *rows[:3],
        row(3, query="another thing"),
        row(40, query="inserted"),
        *rows[4:],
        row(10),
        row(11, query=""),
    ]
    changed[1] = rows[1] | {"row_id": "renamed"}
    settings = table(tmp_path, changed)
    asked, receipts = run(settings)
    assert asked == ["another thing", "inserted", "thing 10"]
    assert sum(receipt.copied for receipt in receipts) == 9

    plan = plan_of(settings, REVISION)
    elsewhere = settings.model_copy(update={"output": str(tmp_path / "fresh")})
    assert len(run(elsewhere)[0]) == 12
    for kind in ("masks", "rejects"):
        assert bytes_of(tmp_path / "out", kind, plan) == bytes_of(tmp_path / "fresh", kind, plan), (
            "as if nothing had been copied"
        )


def test_another_image_other_references_another_model_or_method_are_computed(
    tmp_path: Path,
) -> None:
    rows = [row(number, spatial_refs=[[0.1, 0.2]]) for number in range(4)]
    run(table(tmp_path, rows))
    rows[0] |= {"image": png(9)}
    rows[1] |= {"spatial_refs": [[0.1, 0.3]]}
    assert run(table(tmp_path, rows))[0] == ["thing 0", "thing 1"]
    assert len(run(table(tmp_path, rows, segment={"refiner_iterations": 1}))[0]) == 4
    rows[2] |= {"query": "new"}
    model, settings = Counting(), table(tmp_path, rows)
    model.revision = "another"
    plan = plan_of(settings, "another")
    assert plan.hints == {}


def test_an_image_behind_a_uri_is_identified_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    rows = [row(number, image=f"{name}.png") for number, name in enumerate("ab")]
    run(table(tmp_path, rows))
    (tmp_path / "b.png").write_bytes(png(5))
    assert run(table(tmp_path, [*rows, row(7)]))[0] == ["thing 1", "thing 7"]


def test_a_part_that_is_gone_is_computed_again(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    run(table(tmp_path, rows))
    for part in (tmp_path / "out" / "masks").iterdir():
        part.unlink()
    assert len(run(table(tmp_path, [*rows, row(4)]))[0]) == 4


@pytest.fixture
def with_rejects(tmp_path: Path) -> RunSettings:
    """A run of 10 rows in 3 shards: two images are not there, one row explodes."""
    rows = [row(number) for number in range(10)]
    rows[1] |= {"image": "late.png"}
    rows[6] |= {"image": "never.png"}
    rows[7] |= {"query": "explode"}
    settings = table(tmp_path, rows)
    run(settings)
    return settings


def test_only_rejects_of_the_code_are_tried_again(
    with_rejects: RunSettings, tmp_path: Path
) -> None:
    before = {kind: read_rows(with_rejects.output, kind) for kind in ("masks", "rejects")}
    (tmp_path / "late.png").write_bytes(png(1))
    plan, settings = retry_plan(Store.open(with_rejects.output), (RejectCode.IMAGE_NOT_FOUND,))
    assert len(plan.pending) == 2
    asked, _ = carry_out(plan, settings)
    assert asked == ["thing 1"]
    masks, rejects = (read_rows(with_rejects.output, kind) for kind in ("masks", "rejects"))
    assert {(each["row_id"], each["code"]) for each in rejects} == {
        ("r6", "image_not_found"),
        ("r7", "model_error"),
    }
    assert sorted(each["row_id"] for each in masks) == sorted(
        [*(each["row_id"] for each in before["masks"]), "r1"]
    )

    fresh = with_rejects.model_copy(update={"output": str(tmp_path / "fresh")})
    run(fresh)
    for kind in ("masks", "rejects"):
        assert bytes_of(tmp_path / "out", kind, plan) == bytes_of(tmp_path / "fresh", kind, plan), (
            "as if the image had been there at first"
        )


def test_a_retry_that_dies_between_its_parts_changes_nothing(
    with_rejects: RunSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {kind: read_rows(with_rejects.output, kind) for kind in PART_KINDS}
    (tmp_path / "late.png").write_bytes(png(1))
    plan, settings = retry_plan(Store.open(with_rejects.output), (RejectCode.IMAGE_NOT_FOUND,))
    put = Store.write_bytes

    def die(store: Store, path: str, data: bytes) -> None:
        if path.startswith("rejects/"):
            raise KeyboardInterrupt
        put(store, path, data)

    monkeypatch.setattr(Store, "write_bytes", die)
    shard = plan.pending[0]
    with pytest.raises(KeyboardInterrupt):
        process_shard(shard, settings, ShardContext(FakeSegmenter()), plan.hints[shard.shard_id])
    monkeypatch.undo()
    assert {kind: read_rows(with_rejects.output, kind) for kind in PART_KINDS} == before
    assert verify_output(Store.open(with_rejects.output)).holds
    carry_out(*retry_plan(Store.open(with_rejects.output), (RejectCode.IMAGE_NOT_FOUND,)))
    assert len(read_rows(with_rejects.output, "masks")) == len(before["masks"]) + 1


def test_a_retry_that_stopped_between_shards_leaves_the_published_run_as_it_was(
    with_rejects: RunSettings, tmp_path: Path
) -> None:
    before = rejected(Store.open(with_rejects.output), 9)
    plan, settings = retry_plan(Store.open(with_rejects.output), (RejectCode.IMAGE_NOT_FOUND,))
    for name in ("late.png", "never.png"):
        (tmp_path / name).write_bytes(b"no image")
    process_shard(
        plan.pending[0],
        settings,
        ShardContext(FakeSegmenter()),
        plan.hints[plan.pending[0].shard_id],
    )
    assert rejected(Store.open(with_rejects.output), 9) == before
    assert verify_output(Store.open(with_rejects.output)).holds


def test_a_row_that_killed_and_one_that_kills_now_are_rejected_once_each(
    with_rejects: RunSettings,
) -> None:
    """Bisection looks at all rows of a shard, also at those that are known to kill."""
    settings = with_rejects.model_copy(update={"output": f"{with_rejects.output}-killed"})
    plan = plan_of(settings, REVISION)
    for shard in plan.pending:
        process_shard(
            shard,
            settings,
            ShardContext(FakeSegmenter()),
            ShardHints(poison_rows=(0,)) if shard is plan.pending[0] else NO_HINTS,
        )
    publish_run(plan, settings)
    again, settings = retry_plan(Store.open(settings.output), (RejectCode.IMAGE_NOT_FOUND,))
    first = again.pending[0]
    receipt = process_shard(
        first,
        settings,
        ShardContext(FakeSegmenter()),
        again.hints[first.shard_id].model_copy(update={"poison_rows": (0, 1)}),
    )
    assert receipt.rejects == {"worker_killed": 2}


def test_a_setting_that_no_answer_depends_on_lets_all_answers_be_copied(tmp_path: Path) -> None:
    rows = [row(number) for number in range(6)]
    rows[2] |= {"image": str(tmp_path / "elsewhere" / "a.png")}
    assert len(run(table(tmp_path, rows))[0]) == 5
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(png(1))
    assert run(table(tmp_path, rows, segment={"allow_roots": [str(tmp_path / "elsewhere")]}))[
        0
    ] == ["thing 2"]


def test_answers_are_copied_also_where_another_setting_was_tried_in_between(
    tmp_path: Path,
) -> None:
    rows = [row(number) for number in range(3)]
    run(table(tmp_path, rows))
    run(table(tmp_path, rows, segment={"early_stop": False}))
    asked, _ = run(table(tmp_path, [*rows, row(3)]))
    assert asked == ["thing 3"]


def test_a_manifest_that_is_gone_costs_copies_and_no_run(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    run(table(tmp_path, rows))
    (manifest,) = (tmp_path / "out/manifests").iterdir()
    manifest.unlink()
    asked, _ = run(table(tmp_path, [*rows, row(3)]))
    assert len(asked) == 4
