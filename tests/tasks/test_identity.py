"""An answer belongs to all that it depends on: what changes is computed anew, the rest is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
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
from wordmask.tasks.storage import Store, sha256
from wordmask.tasks.table.footers import input_files


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
    old = method.METHOD_VERSION
    upgrade(monkeypatch)
    with pytest.raises(InputError, match=f"by method version {old}, and this code has {old + 1}"):
        retry_plan(Store.open(settings.output), (RejectCode.IMAGE_NOT_FOUND,))


def test_equal_tables_beside_other_images_are_computed_each(tmp_path: Path) -> None:
    table = [{"row_id": "r", "image": "a.png", "query": "a thing"}]
    shown = []
    for day in (1, 2):
        folder = tmp_path / f"day {day}"
        settings = settings_for(folder, table).model_copy(update={"output": str(tmp_path / "out")})
        if day == 2:
            shutil.copy2(tmp_path / "day 1/in.parquet", folder / "in.parquet")
        (folder / "a.png").write_bytes(png(day))
        assert night(settings) == ["a thing"]
        shown += [row["image_id"] for row in read_rows(settings.output, "masks")]
    assert shown == [sha256(png(day))[:32] for day in (1, 2)]


BOTH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("images", "relative"),
    [
        (pa.array(["s3://lake/a.png", "s3://photos/b.png"]), False),
        (pa.array(["/data/a.png", "/photos/b.png", None]), False),
        (pa.array(["/data/a.png", "a.png"]), True),
        (pa.array(["https://host/a.png", "s3://lake/a.png"]), True),
        (pa.array(["s3://lake/a.png", ""]), True),
        (pa.array([None, None], pa.string()), False),
        (pa.array(["s3://lake/a.png"] * 3).dictionary_encode(), False),
        (pa.array(["a.png"] * 3).dictionary_encode(), True),
        (pa.array([b"a.png"]), False),
        (pa.array([{"bytes": b"1", "path": "a.png"}] * 2, BOTH), False),
        (pa.array([{"bytes": b"1", "path": None}, {"bytes": None, "path": "a.png"}], BOTH), True),
        (pa.array([{"bytes": None, "path": "s3://lake/a.png"}, None], BOTH), False),
        (pa.array([{"bytes": b"1"}, None]), False),
    ],
)
def test_a_shards_folder_counts_only_where_a_uri_may_be_relative(
    images: pa.Array, relative: bool, tmp_path: Path
) -> None:
    table = pa.table({"image": images, "query": ["a thing"] * len(images)})
    ids = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "in.parquet"
        pq.write_table(table, path)
        os.utime(path, (1, 1))
        settings = RunSettings(input=str(path), output=str(tmp_path / "out"))
        ids |= {shard.shard_id for shard in plan_of(settings, REVISION).shards}
    assert len(ids) == 1 + relative


def test_a_footer_without_statistics_excludes_no_relative_uri(tmp_path: Path) -> None:
    table = pa.table({"image": ["s3://lake/a.png"], "query": ["a thing"]})
    pq.write_table(table, tmp_path / "in.parquet", write_statistics=False)
    settings = RunSettings(input=str(tmp_path), output=f"{tmp_path}/out")
    (file,) = input_files(settings, Store.open(settings.output)).files
    assert file.image_folder == f"file://{tmp_path}"


def test_a_worker_with_code_of_another_version_does_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, rows(1))
    (shard,) = plan_of(settings, REVISION).pending
    old = method.METHOD_VERSION
    upgrade(monkeypatch)
    with pytest.raises(
        ModelChangedError, match=f"planned with method version {old}, .*has {old + 1}"
    ):
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    assert not Path(settings.output).exists()


@pytest.mark.parametrize("limit", [{"max_image_pixels": 767}, {"max_image_bytes": 100}])
def test_no_answer_about_an_image_beyond_a_lowered_limit_is_copied(
    limit: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    table = [*rows(2), {"row_id": "uri", "image": "a.png", "query": "a thing"}]
    assert len(night(settings_for(tmp_path, table))) == 3
    lowered = settings_for(tmp_path, table, segment=limit)
    assert night(lowered) == []
    codes = [row["code"] for row in read_rows(lowered.output, "rejects")]
    assert codes == ["image_too_large"] * 3


def test_the_fingerprint_of_the_image_behind_a_uri_is_kept_with_the_answer(tmp_path: Path) -> None:
    for name, data in (("a.png", png(1)), ("broken.png", b"no image"), ("huge.png", b"0" * 9_000)):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (7, 7))
    names = ("a.png", "broken.png", "huge.png", "gone.png")
    table = [*rows(1), *({"row_id": name, "image": name, "query": "a thing"} for name in names)]
    settings = settings_for(tmp_path, table, segment={"max_image_bytes": 8_000})
    night(settings)
    ended = read_rows(settings.output, "masks") + read_rows(settings.output, "rejects")
    sizes = {"a.png": len(png(1)), "broken.png": 8, "huge.png": 9_000}
    expected = {name: f"{size}-7.0" for name, size in sizes.items()}
    found = {row["row_id"]: row["image_fingerprint"] for row in ended}
    assert found == expected | {"r0": None, "gone.png": None}
