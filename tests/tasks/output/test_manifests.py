"""A published run as head, index and manifests: what is written when, and what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

import wordmask
from tests.support.fakes import REVISION
from tests.support.folders import ROOT
from tests.support.runs import GOOD, carry_out, compute, plan_of, publish_run
from tests.support.tables import read_rows, write_input
from wordmask.schemas.manifests import INDEX, MANIFEST, SHARD, IndexEntry
from wordmask.schemas.masks import MASKS
from wordmask.schemas.runs import Part, RowRange, Shard, ShardRecord
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.output.catalog import newest_run, run_path, status
from wordmask.tasks.output.garbage import find_garbage, remove_files
from wordmask.tasks.output.manifests import (
    FileRecords,
    entry_of,
    read_index,
    read_manifest,
    write_manifests,
)
from wordmask.tasks.output.published import open_newest_run
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.storage import Store

RECORD = ShardRecord(
    shard=Shard(
        shard_id="0123456789abcdef" * 2,
        file="s3://lake/in/a.parquet",
        name="a.parquet",
        fingerprint="etag",
        ranges=(RowRange(0, 5, 8), RowRange(1, 0, 4)),
        first_row=5,
        duplicates=(2, 3),
        model_revision="revision",
        settings_hash="hash",
        method_version=7,
        partition={"day": "2026-11-30", "split": None},
    ),
    masks=4,
    absent=1,
    rejects={"empty_query": 2, "model_error": 1},
    masks_part=Part(path="masks/a", rows=4, bytes=100, sha256="aa"),
    rejects_part=Part(path="rejects/b", rows=3, bytes=50, sha256="bb"),
    copied=3,
    environment={"torch": "2.13.0"},
)


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    """Of a run over two files of two shards each."""
    for name in "ab":
        write(tmp_path, name, [f"{name} {number}" for number in range(4)])
    return RunSettings(input=str(tmp_path / "in"), output=str(tmp_path / "out"), shard_rows=2)


def write(folder: Path, name: str, queries: list[str]) -> None:
    rows = [GOOD | {"row_id": query, "query": query} for query in queries]
    write_input(folder / f"in/{name}.parquet", rows)


def night(settings: RunSettings) -> list[str]:
    """Carry out a run, and return the words that the model was asked about."""
    return carry_out(plan_of(settings, REVISION), settings)[0]


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the folders of the output that files are read from, from now on."""
    read: set[str] = set()
    read_bytes, reading = Store.read_bytes, Store.reading

    def note(store: Store, path: str) -> bytes:
        read.add(path.split("/")[0])
        return read_bytes(store, path)

    def note_reading(store: Store, path: str) -> Any:
        if path:  # else a file of the input
            read.add(path.split("/")[0])
        return reading(store, path)

    monkeypatch.setattr(Store, "read_bytes", note)
    monkeypatch.setattr(Store, "reading", note_reading)
    return read


def test_every_field_of_a_record_has_a_column(tmp_path: Path) -> None:
    assert set(MANIFEST.names) == set(ShardRecord.model_fields)
    assert {field.name for field in SHARD} == set(Shard.model_fields)
    assert set(INDEX.names) == set(IndexEntry.model_fields)
    for model in (Shard, ShardRecord):
        assert all(getattr(part, name) for part, name in _fields(model)), "of which none is empty"
    output = Store.open(str(tmp_path))
    index = write_manifests(output, [FileRecords(entry=entry_of([RECORD]), records=(RECORD,))])
    (entry,) = read_index(output, index)
    assert read_manifest(output, entry.manifest) == [RECORD]
    assert (entry.rows, entry.masks, entry.rejects) == (7, 4, RECORD.rejects)


def _fields(model: type[Shard] | type[ShardRecord]) -> list[tuple[Shard | ShardRecord, str]]:
    part = RECORD.shard if model is Shard else RECORD
    return [(part, name) for name in model.model_fields]


def test_the_manifest_of_an_unchanged_file_is_referred_to(
    settings: RunSettings, tmp_path: Path
) -> None:
    night(settings)
    output = Store.open(settings.output)
    first = open_newest_run(output).entries
    write(tmp_path, "b", ["b 0", "b 1", "b 2", "another"])
    assert night(settings) == ["another"]
    second = open_newest_run(output).entries
    assert list(second) == ["a.parquet", "b.parquet"]
    assert second["a.parquet"] == first["a.parquet"]
    assert second["b.parquet"].manifest != first["b.parquet"].manifest
    assert len(output.names("manifests", ".parquet")) == 3
    assert night(settings) == []
    assert len(output.names("manifests", ".parquet")) == 3
    assert len(output.names("indexes", ".parquet")) == 2


def test_a_night_with_nothing_new_reads_no_manifest_no_receipt_and_no_part(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(settings)
    read = noted_reads(monkeypatch)
    assert night(settings) == []
    assert read == {"runs", "indexes"}


def test_status_reads_heads_only(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    night(settings)
    read = noted_reads(monkeypatch)
    assert status(Store.open(settings.output)).runs[0].rows == 8
    assert read == {"runs"}


def test_a_head_does_not_grow_with_the_table(settings: RunSettings, tmp_path: Path) -> None:
    night(settings)
    output = Store.open(settings.output)
    small = len(output.read_bytes(run_path(newest_run(output).run_id)))
    for number in range(20):
        write(tmp_path, f"more-{number}", ["a", "b", "c", "d"])
    night(settings)
    large = len(output.read_bytes(run_path(newest_run(output).run_id)))
    assert newest_run(output).shards == 44
    assert large - small < 40, "some counts have more digits"


@pytest.mark.parametrize("step", ["manifests/", "indexes/", "runs/"])
def test_a_publication_that_dies_shows_readers_the_run_before(
    step: str, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(settings)
    output = Store.open(settings.output)
    before = read_rows(settings.output, "masks")
    write(tmp_path, "b", ["b 0", "new"])
    plan = plan_of(settings, REVISION)
    compute(plan, settings)
    put = Store.write_bytes

    def die(store: Store, path: str, data: bytes) -> None:
        if path.startswith(step):
            raise KeyboardInterrupt
        put(store, path, data)

    monkeypatch.setattr(Store, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        publish_run(plan, settings)
    monkeypatch.undo()
    assert read_rows(settings.output, "masks") == before
    assert verify_output(output).holds
    remove_files(output, find_garbage(output).files, lambda: None)
    assert verify_output(output).holds
    assert night(settings) == [], "what was computed is taken up"
    assert len(read_rows(settings.output, "masks")) == 6
    assert verify_output(output).holds


@pytest.mark.parametrize("folder", ["manifests", "indexes"])
@pytest.mark.parametrize("damage", ["is missing", "is not what was written"])
def test_a_record_that_is_gone_or_changed_is_a_violation(
    folder: str, damage: str, settings: RunSettings
) -> None:
    night(settings)
    path = sorted(Path(settings.output, folder).iterdir())[0]
    if damage == "is missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"x")
    (violation,) = verify_output(Store.open(settings.output)).violations
    assert f"{folder}/{path.name} {damage}" in violation


def test_shards_whose_manifest_is_gone_are_taken_from_their_receipts(
    settings: RunSettings,
) -> None:
    night(settings)
    before = read_rows(settings.output, "masks")
    for path in Path(settings.output, "manifests").iterdir():
        path.unlink()
    assert night(settings) == []
    assert read_rows(settings.output, "masks") == before
    assert verify_output(Store.open(settings.output)).holds


def test_a_head_that_says_other_than_its_files_is_a_violation(settings: RunSettings) -> None:
    night(settings)
    head = newest_run(Store.open(settings.output))
    path = Path(settings.output, run_path(head.run_id))
    path.write_text(json.dumps(head.model_dump(mode="json") | {"masks": 9}))
    (violation,) = verify_output(Store.open(settings.output)).violations
    assert "masks is 9, but its files have 8" in violation


def test_the_documented_way_leads_other_programs_to_the_masks(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(settings.model_copy(update={"output": str(tmp_path / "masks")}))
    snippet = (ROOT / "docs/formats.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(snippet, found)
    assert found["masks"].num_rows == 8


def test_the_newest_masks_are_an_arrow_dataset(settings: RunSettings, tmp_path: Path) -> None:
    night(settings)
    masks = wordmask.open_masks(settings.output)
    found = masks.to_table(columns=["row_id"], filter=ds.field("query") == "b 1")
    assert found["row_id"].to_pylist() == ["b 1"]
    write(tmp_path, "b", ["", ""])
    assert masks.count_rows() == 8, "it stays the run that was opened"
    night(settings)
    assert wordmask.open_masks(settings.output).count_rows() == 4
    write(tmp_path, "a", [""])
    night(settings)
    assert wordmask.open_masks(settings.output).to_table().schema.names == MASKS.names
    with pytest.raises(FileNotFoundError, match="no published run"):
        wordmask.open_masks(str(tmp_path / "nowhere"))
