"""Folders KEY=VALUE of an input: columns that are carried, and chosen by."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.runs import plan_of, publish_run, run_all
from tests.support.tables import png, read_rows, write_input
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.reuse import retry_plan
from wordmask.tasks.storage import Store


def settings_for(folder: Path, *carry: str, **options: object) -> RunSettings:
    values = {"input": str(folder / "in"), "output": str(folder / "out"), **options}
    return RunSettings.model_validate(values | {"segment": {"carry": carry}})


def write_days(folder: Path) -> None:
    for split, day in (("train", "2026-11-30"), ("train", "2026-12-01"), ("test", "2026-12-01")):
        row = {"image": png(), "query": f"{split} {day}"}
        write_input(folder / f"in/split={split}/day={day}/part.parquet", [row])


def queries(settings: RunSettings) -> list[str]:
    publish_run(run_all(settings), settings)
    return [row["query"] for row in read_rows(settings.output, "masks")]


def test_keys_are_carried_as_text(tmp_path: Path) -> None:
    write_days(tmp_path)
    settings = settings_for(tmp_path, "day", "split")
    publish_run(run_all(settings), settings)
    rows = read_rows(settings.output, "masks")
    assert {(row["split"], row["day"], row["query"]) for row in rows} == {
        ("train", "2026-11-30", "train 2026-11-30"),
        ("train", "2026-12-01", "train 2026-12-01"),
        ("test", "2026-12-01", "test 2026-12-01"),
    }
    for part in Path(settings.output, "masks").glob("*.parquet"):
        schema = pq.read_schema(part)
        assert schema.field("day").type == schema.field("split").type == pa.string()


def test_values_are_decoded_and_the_default_partition_is_null(tmp_path: Path) -> None:
    row = {"image": png(), "query": "a thing"}
    write_input(tmp_path / "in/name=a%2Fb%20%C3%BC%3D1/part.parquet", [row])
    write_input(tmp_path / "in/name=__HIVE_DEFAULT_PARTITION__/part.parquet", [row])
    settings = settings_for(tmp_path, "name")
    publish_run(run_all(settings), settings)
    assert {row["name"] for row in read_rows(settings.output, "masks")} == {"a/b ü=1", None}


def test_the_folder_counts_where_the_file_has_the_column_too(tmp_path: Path) -> None:
    row = {"image": png(), "query": "a thing", "day": 7}
    write_input(tmp_path / "in/day=2026-11-30/part.parquet", [row])
    settings = settings_for(tmp_path, "day")
    publish_run(run_all(settings), settings)
    assert [row["day"] for row in read_rows(settings.output, "masks")] == ["2026-11-30"]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (["split=test"], ["test 2026-12-01"]),
        (["split=train", "day=2026-12-01"], ["train 2026-12-01"]),
        (
            ["day=2026-11-30", "day=2026-12-01", "split=train"],
            ["train 2026-11-30", "train 2026-12-01"],
        ),
    ],
)
def test_only_the_partitions_asked_for_are_read(
    tmp_path: Path, where: list[str], found: list[str]
) -> None:
    write_days(tmp_path)
    assert sorted(queries(settings_for(tmp_path, where=where))) == found


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("splt=train", r"no partition key 'splt'; the input has split, day"),
        ("split=val", r"--where split=val: no file is in there; split is test, train"),
    ],
)
def test_a_partition_that_is_not_there_is_an_error(tmp_path: Path, where: str, words: str) -> None:
    write_days(tmp_path)
    with pytest.raises(InputError, match=words):
        plan_of(settings_for(tmp_path, where=[where]), "m")


def test_a_condition_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'split': must be KEY=VALUE, such as split=train"):
        RunSettings(input="in", output="out", where=("split",))


def test_a_key_of_some_files_only_cannot_be_carried(tmp_path: Path) -> None:
    row = {"image": png(), "query": "a thing"}
    write_input(tmp_path / "in/day=1/part.parquet", [row])
    write_input(tmp_path / "in/part.parquet", [row])
    with pytest.raises(InputError, match=r"part\.parquet: no column 'day' to carry"):
        plan_of(settings_for(tmp_path, "day"), "m")


def test_a_retry_carries_the_keys_too(tmp_path: Path) -> None:
    bad = {"image": b"no image", "query": "a thing"}
    write_input(tmp_path / "in/day=1/part.parquet", [bad, {"image": png(), "query": "a thing"}])
    settings = settings_for(tmp_path, "day")
    publish_run(run_all(settings), settings)
    output = Store.open(settings.output)
    plan, _ = retry_plan(output, [RejectCode.IMAGE_UNREADABLE])
    assert [shard.partition for shard in plan.pending] == [{"day": "1"}]
