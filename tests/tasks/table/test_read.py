"""Reading the rows of a shard: exactly the planned ones, of every kind of image column."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support import tables
from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, require_every_row_once
from tests.support.tables import png, write_input
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import STORE_ERRORS, Store, is_damaged_parquet
from wordmask.tasks.table.read import DamagedInputError, read_rows
from wordmask.tasks.table.row_groups import ReaderCache


def run(
    input: Path, output: Path, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Masks and rejects of a whole run, its accounts checked."""
    settings = RunSettings.model_validate({"input": str(input), "output": str(output), **options})
    plan = plan_of(settings, REVISION)
    receipts = [
        process_shard(shard, settings, ShardContext(FakeSegmenter())) for shard in plan.pending
    ]
    require_every_row_once(plan, settings)
    masks, rejects = tables.read_rows(output, "masks"), tables.read_rows(output, "rejects")
    assert sum(receipt.masks for receipt in receipts) == len(masks)
    assert sum((Counter(receipt.rejects) for receipt in receipts), Counter()) == Counter(
        row["code"] for row in rejects
    )
    assert len(masks) + len(rejects) == plan.rows
    return masks, rejects


@given(count=st.integers(1, 3000), group=st.integers(1, 3000), most=st.integers(1, 3000))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=30)
def test_shards_together_read_every_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, group: int, most: int
) -> None:
    # Few but large enough to cross the batches a row group is read in.
    group, most = max(group, count // 40), max(most, count // 40)
    folder = tmp_path_factory.mktemp("read")
    table = pa.table(
        {"image": pa.nulls(count, pa.string()), "query": [f"thing {i}" for i in range(count)]}
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=group)
    settings = RunSettings(
        input=str(folder / "a.parquet"), output=str(folder / "out"), shard_rows=most
    )
    shards = plan_of(settings, REVISION).shards
    order = list(range(len(shards)))
    random.Random(count).shuffle(order)
    store, readers = Store.open(settings.input), ReaderCache()
    read = {
        index: read_rows(store, shards[index], settings.segment, readers)[0]
        for index in [*order, *order[:3]]
    }
    found = [read[index] for index in range(len(shards))]
    assert [row.query for rows in found for row in rows] == [f"thing {i}" for i in range(count)]
    assert [[row.position for row in rows] for rows in found] == [
        list(range(shard.rows)) for shard in shards
    ]
    assert len({row.row_id for rows in found for row in rows}) == count


def test_a_row_group_of_many_shards_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, read = 20_000, [0]
    table = pa.table(
        {"image": pa.nulls(rows, pa.string()), "query": [f"thing {i}" for i in range(rows)]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=rows)
    settings = RunSettings(
        input=str(tmp_path / "a.parquet"), output=str(tmp_path / "out"), shard_rows=256
    )
    iter_batches = pq.ParquetFile.iter_batches

    def counted(*args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in iter_batches(*args, **options):
            read[0] += len(batch)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    shards = plan_of(settings, REVISION).shards
    assert len(shards) > 70
    read[0] = 0
    store, readers = Store.open(settings.input), ReaderCache()
    with ThreadPoolExecutor(2) as pool:  # as a worker reads: for two shards at a time
        list(pool.map(lambda shard: read_rows(store, shard, settings.segment, readers), shards))
    assert rows <= read[0] <= 3 * rows


def test_a_column_of_uris(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    uris = [
        "a.png",
        "deep/b.png",
        str(tmp_path / "c.png"),
        (tmp_path / "c.png").as_uri(),
        "d.png",
        "ftp://host/a.png",
        None,
        "",
    ]
    pq.write_table(pa.table({"image": uris, "query": ["x"] * len(uris)}), tmp_path / "in.parquet")
    masks, rejects = run(tmp_path / "in.parquet", tmp_path / "out")
    assert [row["image_uri"] for row in masks] == uris[:4]
    assert len({row["image_id"] for row in masks}) == 1
    assert [row["code"] for row in rejects] == [
        RejectCode.IMAGE_NOT_FOUND,
        RejectCode.URI_NOT_ALLOWED,
        RejectCode.MISSING_IMAGE,
        RejectCode.MISSING_IMAGE,
    ]
    assert [row["image_uri"] for row in rejects] == uris[4:]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    images = pa.array([png(1), None, png(2)], kind)
    pq.write_table(pa.table({"image": images, "query": ["x", "y", "z"]}), tmp_path / "in.parquet")
    masks, rejects = run(tmp_path / "in.parquet", tmp_path / "out")
    assert [row["query"] for row in masks] == ["x", "z"]
    assert [row["code"] for row in rejects] == [RejectCode.MISSING_IMAGE]


def test_a_table_that_polars_wrote(tmp_path: Path) -> None:
    columns = {
        "image": [png(1), png(2)],
        "query": ["x", "y"],
        "row_id": [7, 8],
        "spatial_refs": [[[0.5, 0.5]], None],
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "in.parquet")
    masks, rejects = run(tmp_path / "in.parquet", tmp_path / "out")
    assert ([row["row_id"] for row in masks], rejects) == (["7", "8"], [])


def test_dictionary_columns(tmp_path: Path) -> None:
    queries = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"image": [png(1)] * 3, "query": queries}), tmp_path / "in.parquet")
    assert [row["query"] for row in run(tmp_path / "in.parquet", tmp_path / "out")[0]] == [
        "x",
        "y",
        "x",
    ]


def test_of_a_row_id_that_repeats_the_first_row_wins_across_files(tmp_path: Path) -> None:
    good = {"image": png(1)}
    write_input(
        tmp_path / "in/a.parquet",
        [good | {"row_id": 1, "query": "first"}, good | {"row_id": 2, "query": "only"}],
    )
    write_input(
        tmp_path / "in/b.parquet",
        [good | {"row_id": "1", "query": "second"}, good | {"row_id": None, "query": "unnamed"}],
    )
    masks, rejects = run(tmp_path / "in", tmp_path / "out", shard_rows=1)
    assert sorted(row["query"] for row in masks) == ["first", "only", "unnamed"]
    assert [(row["row_id"], row["query"], row["code"]) for row in rejects] == [
        ("1", "second", RejectCode.DUPLICATE_ROW_ID)
    ]


def test_derived_row_ids_follow_place_and_content(tmp_path: Path) -> None:
    rows = [{"image": png(1), "query": "x"}, {"image": png(1), "query": "x"}]
    write_input(tmp_path / "in/a.parquet", rows)
    write_input(tmp_path / "in/b.parquet", rows)
    first = [row["row_id"] for row in run(tmp_path / "in", tmp_path / "out")[0]]
    assert len(set(first)) == 4
    again = [row["row_id"] for row in run(tmp_path / "in", tmp_path / "again", shard_rows=1)[0]]
    assert sorted(again) == sorted(first), "how the input is cut does not name its rows"


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "wordmask.unknown", "arrow.uuid"])
def test_an_extension_type_of_a_stranger_is_plain_data(tmp_path: Path, name: str) -> None:
    """Arrow's own Python types once carried a pickle in the column's metadata."""
    sprung = tmp_path / "sprung"
    pickled = pickle.dumps(Trap(sprung))
    trap = {
        b"ARROW:extension:name": name.encode(),
        b"ARROW:extension:metadata": b"" if name == "arrow.uuid" else pickled,
    }
    kinds = {
        "image": pa.binary(),
        "query": pa.string(),
        "note": pa.binary(16) if name == "arrow.uuid" else pa.string(),
    }
    fields = [
        pa.field(column, kind, metadata=trap if kind is kinds["note"] else None)
        for column, kind in kinds.items()
    ]
    note = b"sixteen bytes it" if name == "arrow.uuid" else "kept"
    pq.write_table(
        pa.table([[png()], ["a thing"], [note]], schema=pa.schema(fields)), tmp_path / "in.parquet"
    )
    masks, _ = run(tmp_path / "in.parquet", tmp_path / "out", segment={"carry": ["note"]})
    assert len(masks) == 1
    assert not sprung.exists()
    pickle.loads(pickled)
    assert sprung.exists(), "the trap was none"


def damaged(path: Path, column: str, at: int) -> None:
    """Write a table whose footer is intact, and overwrite a few bytes of a column."""
    count = 500
    columns = {
        "image": ["a.png"] * count,
        "query": [f"thing {i}" for i in range(count)],
        "row_id": [f"r{i}" for i in range(count)],
    }
    pq.write_table(pa.table(columns), path, use_dictionary=False)
    footer = pq.read_metadata(path).row_group(0)
    page = next(
        c.data_page_offset
        for c in map(footer.column, range(footer.num_columns))
        if c.path_in_schema == column
    )
    data = bytearray(path.read_bytes())
    data[page + at : page + at + 40] = b"\xff" * 40
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 300], ids=["header", "body"])
def test_a_damaged_page_is_told_by_its_file_and_is_no_fault_of_the_store(
    tmp_path: Path, at: int
) -> None:
    damaged(tmp_path / "in.parquet", "query", at)
    settings = RunSettings(
        input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), shard_rows=300
    )
    shard = plan_of(settings, REVISION).shards[1]
    with pytest.raises(
        DamagedInputError, match=r"input in\.parquet rows 300-499: the file is damaged"
    ) as caught:
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    assert not isinstance(caught.value, STORE_ERRORS), (
        "or it would be tried again, and count against the store"
    )


@pytest.mark.parametrize("at", [0, 300], ids=["header", "body"])
def test_damaged_row_ids_are_told_by_their_file_while_planning(tmp_path: Path, at: int) -> None:
    damaged(tmp_path / "in.parquet", "row_id", at)
    settings = RunSettings(input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"))
    with pytest.raises(
        InputError, match=r"(?s)input in\.parquet: column 'row_id' cannot be read .*Export it again"
    ):
        plan_of(settings, REVISION)


def test_what_the_store_says_without_a_number_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(f"memory://{tmp_path}")
    store.write_bytes(
        "a.parquet",
        Path(write_input(tmp_path / "a.parquet", [{"image": png(), "query": "x"}])).read_bytes(),
    )

    def forbidden(*_: Any) -> bytes:
        raise OSError("Forbidden")  # as some file systems have it

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", forbidden)
    with pytest.raises(OSError, match="Forbidden") as caught, store.parquet("a.parquet"):
        pass
    assert not is_damaged_parquet(caught.value)
