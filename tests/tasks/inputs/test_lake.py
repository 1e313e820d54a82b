"""Tables of a lake: the files of their current version, and no pile of files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.support.runs import publish_run, run_all
from tests.support.tables import IMAGE, png, read_rows, write_input
from tests.tasks.inputs.test_listing import listed, names, told, uploaded
from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.inputs import lake
from wordmask.tasks.inputs.delta import delta_files
from wordmask.tasks.storage import Store
from wordmask.tasks.table.footers import input_files


def write_delta(folder: Path) -> Path:
    """Write a Delta table of two days, of which version 1 has lost one row's file."""
    rows = [("kept", "2026-11-30"), ("removed", "2026-11-30"), ("other", "a/b ü")]
    for query, day in rows:
        image = pa.array([{"bytes": png(), "path": None}], IMAGE)
        table = pa.table({"image": image, "query": [query], "day": [day]})
        write_deltalake(folder, table, mode="append", partition_by=["day"])
    DeltaTable(folder).delete("query = 'removed'")
    return folder


def queries(input: Path | str, output: Path) -> set[tuple[str, str]]:
    settings = RunSettings.model_validate(
        {"input": str(input), "output": str(output), "segment": {"carry": ["day"]}}
    )
    publish_run(run_all(settings), settings)
    return {(row["query"], row["day"]) for row in read_rows(output, "masks")}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_delta_table_is_read_at_its_current_version(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    input = str(write_delta(tmp_path / "in"))
    if place == "s3":
        input = uploaded(tmp_path / "in", f"{request.getfixturevalue('s3')}/delta")
    assert queries(input, tmp_path / "out") == {("kept", "2026-11-30"), ("other", "a/b ü")}
    (left,) = listed(input).left_out
    assert (left.why, left.files) == ("not in version 3 of the Delta table", 1)


@pytest.mark.parametrize("pattern", ["in", "in/*/*.parquet", "in/day=2026-11-30", "", "**"])
def test_however_it_is_named_removed_files_of_a_delta_table_are_not_read(
    tmp_path: Path, pattern: str
) -> None:
    write_delta(tmp_path / "in")
    found = listed(tmp_path / pattern)
    (removed,) = told(found)["not in version 3 of the Delta table"]
    assert names(found)
    assert removed not in names(found)


def test_partitions_of_a_delta_table_are_chosen_by_the_values_of_its_log(tmp_path: Path) -> None:
    settings = RunSettings(
        input=str(write_delta(tmp_path / "in")), output=str(tmp_path / "out"), where=("day=a/b ü",)
    )
    (file,) = input_files(settings, Store.open(settings.output)).files
    assert file.partition == {"day": "a/b ü"}


def test_a_file_that_the_log_names_and_is_not_there_is_a_bad_file(tmp_path: Path) -> None:
    write_delta(tmp_path)
    first = listed(tmp_path).files[0].name
    (tmp_path / first).unlink()
    with pytest.raises(InputError, match="not there, though the Delta table's log names it"):
        listed(tmp_path)


def test_without_the_library_a_delta_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_delta(tmp_path)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(InputError, match=r"is a Delta table; .*pip install 'wordmask\[delta\]'"):
        listed(tmp_path)


def write_log(folder: Path, feature: str, configuration: dict[str, str], **add: Any) -> None:
    write_input(folder / "part.parquet", [{"image": png(), "query": "a thing"}])
    annotated = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}
    field = {"name": "query", "type": "string", "nullable": True, "metadata": annotated}
    features = {"readerFeatures": [feature], "writerFeatures": [feature]}
    actions = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
        {
            "metaData": {
                "id": "1",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": [field]}),
                "partitionColumns": [],
                "configuration": configuration,
                "createdTime": 1,
            }
        },
        {
            "add": {
                "path": "part.parquet",
                "partitionValues": {},
                "size": 1,
                "modificationTime": 1,
                "dataChange": True,
                **add,
            }
        },
    ]
    (folder / "_delta_log").mkdir()
    log = folder / f"_delta_log/{0:020}.json"
    log.write_text("\n".join(map(json.dumps, actions)))


def test_deleted_rows_and_renamed_columns_are_refused_by_name(tmp_path: Path) -> None:
    vector = {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^", "offset": 4}
    vector |= {"sizeInBytes": 40, "cardinality": 1}
    write_log(tmp_path / "deleted", "deletionVectors", {}, deletionVector=vector)
    with pytest.raises(InputError, match=r"deletion vectors: .* REORG TABLE"):
        listed(tmp_path / "deleted")
    write_log(tmp_path / "renamed", "columnMapping", {"delta.columnMapping.mode": "name"})
    with pytest.raises(InputError, match=r"column mapping \(name\)"):
        listed(tmp_path / "renamed")
    write_log(tmp_path / "none_deleted", "deletionVectors", {})
    assert names(listed(tmp_path / "none_deleted")) == ["part.parquet"]
    write_log(tmp_path / "clone", "deletionVectors", {})
    log = tmp_path / f"clone/_delta_log/{0:020}.json"
    log.write_text(log.read_text().replace('"part.parquet"', '"file:///far/part.parquet"'))
    with pytest.raises(InputError, match="names a file outside of it"):
        listed(tmp_path / "clone")


def test_a_log_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_input(tmp_path / "part.parquet", [{"image": png(), "query": "a thing"}])
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / f"_delta_log/{0:020}.json").write_text('{"add": {"path": "part.parquet"}}')
    with pytest.raises(InputError, match="a Delta table whose log cannot be read"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("metadata/v2.metadata.json", "an Iceberg table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
    ],
)
@pytest.mark.parametrize("input", ["", "data", "data/day=1", "data/*/*.parquet"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_tables_of_other_lakes_are_refused_by_name(
    tmp_path: Path, log: str, kind: str, input: str, place: str, request: pytest.FixtureRequest
) -> None:
    write_input(tmp_path / "t/data/day=1/a.parquet", [{"image": png(), "query": "a thing"}])
    (tmp_path / "t" / log).parent.mkdir(exist_ok=True)
    (tmp_path / "t" / log).write_text("{}")
    root = str(tmp_path / "t")
    if place == "s3":
        root = uploaded(tmp_path / "t", f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    with pytest.raises(InputError, match=f"is {kind}: its folder holds files of several versions"):
        listed(f"{root}/{input}".rstrip("/"))


def test_a_file_that_was_added_since_the_folder_was_listed_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_delta(tmp_path)
    before = names(listed(tmp_path))

    def append_and_read(*place: Any) -> Any:
        image = pa.array([{"bytes": png(), "path": None}], IMAGE)
        table = pa.table({"image": image, "query": ["late"], "day": ["2026-12-01"]})
        write_deltalake(tmp_path, table, mode="append")
        return delta_files(*place)

    monkeypatch.setattr(lake, "delta_files", append_and_read)
    files = listed(tmp_path).files
    (late,) = [file for file in files if file.name not in before]
    assert (late.problem, late.partition) == (None, {"day": "2026-12-01"})
    assert [file.name for file in files] == sorted([*before, late.name])
