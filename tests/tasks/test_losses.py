"""What a run lacks of its input is named: vanished files, files that keep changing, failed shards.

On 117a9f2 nothing of this could be: each test fails there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, convert_to_deltalake

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, publish_run, require_every_row_once
from tests.support.tables import png, read_rows, write_input
from wordmask.schemas.losses import RowSpan, uncovered
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Plan, RunSummary, Shard
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.losses import find_vanished, look_again, settle
from wordmask.tasks.output.catalog import publish
from wordmask.tasks.output.published import open_newest_run
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.output.verify import verify, verify_output
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store
from wordmask.tasks.table import read
from wordmask.tasks.table.read import InputChangedError


def settings_for(tmp_path: Path, files: str = "abc") -> RunSettings:
    """Write a table of one file for each letter, with three rows each."""
    for name in files:
        write_file(tmp_path, name, "thing")
    return RunSettings(input=str(tmp_path / "in"), output=str(tmp_path / "out"), shard_rows=2)


def write_file(tmp_path: Path, name: str, words: str) -> None:
    rows = [{"row_id": f"{name}{i}", "image": png(i), "query": words} for i in range(3)]
    write_input(tmp_path / "in" / f"{name}.parquet", rows)


def carry_out(
    settings: RunSettings, fails: Callable[[Shard], bool], changed: Sequence[str] = ()
) -> tuple[Plan, RunSummary]:
    """Do the pending shards but for those that fail, and publish what is left of the plan."""
    plan = plan_of(settings, REVISION)
    for shard in plan.pending:
        if not fails(shard):
            process_shard(shard, settings, ShardContext(FakeSegmenter()))
    failures = [(shard, "DamagedInputError: a page") for shard in plan.pending if fails(shard)]
    settled = settle(plan, failures, changed, Store.open(settings.output))
    require_every_row_once(settled, settings)
    return settled, publish_run(settled, settings)


def queries(settings: RunSettings) -> dict[str, str]:
    return {row["row_id"]: row["query"] for row in read_rows(settings.output, "masks")}


def test_a_file_that_changed_is_published_as_the_run_before_had_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    carry_out(settings, lambda _: False)
    for name in "ab":
        write_file(tmp_path, name, "other words")
    _, summary = carry_out(settings, lambda shard: shard.name == "a.parquet", ["a.parquet"])
    assert [(file.name, file.rows) for file in summary.kept] == [("a.parquet", 3)]
    assert (summary.rows, summary.gaps) == (9, ())
    words = queries(settings)
    assert (words["a0"], words["b0"], len(words)) == ("thing", "other words", 9)
    assert verify_output(Store.open(settings.output)).holds
    _, later = carry_out(settings, lambda _: False)
    assert (later.kept, later.shards_computed) == ((), 2)
    assert queries(settings)["a0"] == "other words"


def test_a_file_of_another_model_is_not_kept_beside_new_answers(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    carry_out(settings, lambda _: False)
    output = Store.open(settings.output)
    plan = plan_of(settings, "another")
    failures = [(shard, "changed") for shard in plan.shards if shard.name == "a.parquet"]
    settled = settle(plan, failures, ["a.parquet"], output)
    assert (settled.kept, sum(gap.rows for gap in settled.gaps)) == ((), 3)


def test_a_kept_file_keeps_its_gaps(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    _, first = carry_out(settings, lambda shard: shard.label == "b.parquet rows 2-2")
    write_file(tmp_path, "b", "other words")
    _, second = carry_out(settings, lambda shard: shard.name == "b.parquet", ["b.parquet"])
    assert (second.gaps, second.rows, second.rows_in_gaps) == (first.gaps, 8, 1)
    assert [(file.name, file.rows) for file in second.kept] == [("b.parquet", 2)]
    assert verify_output(Store.open(settings.output)).holds


def test_a_file_of_another_input_is_not_kept(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "monday")
    carry_out(settings, lambda _: False)
    tuesday = settings_for(tmp_path / "tuesday").model_copy(update={"output": settings.output})
    write_file(tmp_path / "tuesday", "a", "words of tuesday")
    plan, _ = carry_out(tuesday, lambda shard: shard.name == "a.parquet", ["a.parquet"])
    assert (plan.kept, sum(gap.rows for gap in plan.gaps)) == ((), 3)


def test_a_file_whose_published_part_is_gone_is_not_kept(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    carry_out(settings, lambda _: False)
    output = Store.open(settings.output)
    (record, *_) = open_newest_run(output).records_of("a.parquet")
    output.remove(record.masks_part.path)
    write_file(tmp_path, "a", "other words")
    plan, _ = carry_out(settings, lambda shard: shard.name == "a.parquet", ["a.parquet"])
    assert (plan.kept, sum(gap.rows for gap in plan.gaps)) == ((), 3)


def test_a_file_that_has_no_rows_any_more_did_not_vanish(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    carry_out(settings, lambda _: False)
    empty = pq.read_table(tmp_path / "in/a.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "in/a.parquet")
    assert plan_of(settings, REVISION).vanished.files == 0


def test_failed_shards_are_named_gaps_until_a_later_run_fills_them(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    _, summary = carry_out(settings, lambda shard: shard.label == "b.parquet rows 0-1")
    (gap,) = summary.gaps
    assert (gap.name, gap.first_row, gap.rows, summary.rows_in_gaps) == ("b.parquet", 0, 2, 2)
    assert (summary.rows, "DamagedInputError" in gap.reason) == (7, True)
    report = verify_output(Store.open(settings.output))
    assert (report.holds, report.rows, report.rows_in_gaps) == (True, 7, 2)
    _, later = carry_out(settings, lambda _: False)
    assert (later.rows, later.gaps, later.shards_computed) == (9, (), 1)
    assert verify_output(Store.open(settings.output)).holds


def test_verify_misses_rows_that_no_gap_names(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    plan, summary = carry_out(settings, lambda shard: shard.first_row == 0)
    output = Store.open(settings.output)
    unnamed = plan.model_copy(update={"gaps": plan.gaps[:2]})
    (violation,) = verify(unnamed, output).violations
    assert violation == "c.parquet: rows 0-1 are in no shard and no named gap"
    publish(output, summary.model_copy(update={"gaps": summary.gaps[:2], "rows_in_gaps": 4}))
    assert verify_output(output).violations == (violation,)


def test_a_retry_keeps_the_gaps_of_its_run(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    _, summary = carry_out(settings, lambda shard: shard.label == "b.parquet rows 0-1")
    plan, _ = retry_plan(Store.open(settings.output), (RejectCode.MODEL_ERROR,))
    assert plan.gaps == summary.gaps
    require_every_row_once(plan, settings)


@pytest.mark.parametrize(
    ("spans", "problems"),
    [
        ([(0, 2), (2, 3)], []),
        ([(2, 3), (0, 2)], []),
        ([(0, 2), (3, 1)], ["rows 2-2 are in no shard and no named gap"]),
        ([(0, 2), (1, 3)], ["rows 1-1 are in two shards or gaps"]),
        ([], []),
    ],
)
def test_rows_are_covered_once(spans: list[tuple[int, int]], problems: list[str]) -> None:
    assert list(uncovered(RowSpan(*span) for span in spans)) == problems


def test_a_run_refuses_an_input_that_lost_many_of_the_published_rows(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    carry_out(settings, lambda _: False)
    for name in "ab":
        (tmp_path / "in" / f"{name}.parquet").unlink()
    told = plan_of(settings, REVISION, refuse=False)
    assert (told.vanished.files, told.vanished.rows) == (2, 6)
    assert (told.counts()["files_vanished"], told.counts()["rows_vanished"]) == (2, 6)
    with pytest.raises(
        InputError, match=r"2 files with 6 rows \(66\.7%\): a\.parquet, b\.parquet\..*--allow-miss"
    ):
        plan_of(settings, REVISION)
    with pytest.raises(InputError, match="Give --allow-missing-files"):
        plan_of(settings.model_copy(update={"skip_bad_files": True}), REVISION)
    allowed = settings.model_copy(update={"allow_missing_files": True})
    _, summary = carry_out(allowed, lambda _: False)
    assert (summary.rows, summary.vanished.names) == (3, ("a.parquet", "b.parquet"))


def test_a_few_vanished_rows_and_another_input_are_no_reason_to_refuse(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "abcdefghij")
    carry_out(settings, lambda _: False)
    (tmp_path / "in" / "a.parquet").unlink()
    _, summary = carry_out(settings, lambda _: False)
    newest = open_newest_run(Store.open(settings.output))
    assert (summary.rows, str(summary.vanished)) == (27, "1 files with 3 rows (10.0%): a.parquet")
    one = settings.model_copy(update={"input": str(tmp_path / "in" / "b.parquet")})
    assert plan_of(one, REVISION).vanished.files == 0
    assert find_vanished(newest, settings.model_copy(update={"where": ("day=1",)}), ()).files == 0


def test_a_file_that_was_only_missing_in_a_short_listing_is_told_when_it_is_there_again(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path, "abcdefghij")
    carry_out(settings, lambda _: False)
    (tmp_path / "in" / "a.parquet").unlink()
    plan, output = plan_of(settings, REVISION), Store.open(settings.output)
    assert look_again(plan, settings, output).returned == 0
    write_file(tmp_path, "a", "thing")
    write_file(tmp_path, "new", "thing")
    again = look_again(plan, settings, output)
    assert again.returned == 1
    assert str(again).endswith("a.parquet. 1 are there again: the listing was short, so run again")


def test_a_file_that_a_delta_table_has_removed_is_not_there_again(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "abcdefghij")
    source = tmp_path / "in"
    convert_to_deltalake(str(source))
    carry_out(settings, lambda _: False)
    DeltaTable(str(source)).delete("row_id like 'a%'")
    plan, output = plan_of(settings, REVISION), Store.open(settings.output)
    assert (source / "a.parquet").exists()
    assert plan.vanished.names == ("a.parquet",)
    assert look_again(plan, settings, output).returned == 0


def test_a_file_that_is_gone_or_changes_while_it_is_read_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path)
    first, _, second, *_ = plan_of(settings, REVISION).shards
    (tmp_path / "in" / "a.parquet").unlink()
    with pytest.raises(InputChangedError, match="is gone now"):
        process_shard(first, settings, ShardContext(FakeSegmenter()))

    def cut(*_: object) -> None:
        (tmp_path / "in" / "b.parquet").write_bytes(b"half written")
        raise OSError("Unexpected end of stream")

    monkeypatch.setattr(read, "rows_of", cut)
    with pytest.raises(InputChangedError, match=r"when planned, is .* now"):
        process_shard(second, settings, ShardContext(FakeSegmenter()))
