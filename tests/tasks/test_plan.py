"""Planning: from footers to shards."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes import REVISION
from tests.support.runs import carry_out, plan_of
from tests.support.tables import png, write_input
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import RowRange
from wordmask.schemas.settings import Columns, RunSettings, SegmentSettings
from wordmask.tasks.output.garbage import name_garbage
from wordmask.tasks.plan import cut, file_shards
from wordmask.tasks.storage import Store
from wordmask.tasks.table.footers import InputFile, RowGroup, _distinct_images


def run_settings(input: Path | str, output: Path | str, **options: object) -> RunSettings:
    return RunSettings.model_validate({"input": str(input), "output": str(output), **options})


def rows(count: int, first: int = 0) -> list[dict[str, object]]:
    return [
        {"row_id": f"r{first + i}", "image": png(i % 3), "query": f"thing {i}"}
        for i in range(count)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), max_size=12),
    st.integers(1, 40),
    st.integers(1, 200),
)
@settings(derandomize=True, deadline=None)
def test_cut_covers_every_row_once_in_order(
    groups: list[tuple[int, int]], most: int, most_bytes: int
) -> None:
    row_groups = [RowGroup(*group) for group in groups]
    shards = list(cut(row_groups, most, most_bytes))
    covered = [
        (part.row_group, row)
        for shard in shards
        for part in shard
        for row in range(part.start, part.stop)
    ]
    assert covered == [
        (group, row) for group, (count, _) in enumerate(groups) for row in range(count)
    ]
    for shard in shards:
        rows = sum(part.stop - part.start for part in shard)
        size = sum(
            (part.stop - part.start) * groups[part.row_group][1] // groups[part.row_group][0]
            for part in shard
        )
        assert 0 < rows <= most
        assert rows == 1 or size <= most_bytes
    whole = list(cut(row_groups, most, sum(size for _, size in groups) + 1))
    assert [sum(part.stop - part.start for part in shard) == most for shard in whole[:-1]] == [
        True
    ] * len(whole[:-1])


def test_small_groups_are_joined_and_large_ones_cut() -> None:
    groups = [RowGroup(rows, 0) for rows in (2, 2, 5)]
    assert list(cut(groups, 4, 1)) == [
        (RowRange(0, 0, 2), RowRange(1, 0, 2)),
        (RowRange(2, 0, 4),),
        (RowRange(2, 4, 5),),
    ]


def test_heavy_rows_make_small_shards() -> None:
    groups = [RowGroup(4, 400), RowGroup(4, 4_000)]
    assert list(cut(groups, 6, 1_500)) == [
        (RowRange(0, 0, 4), RowRange(1, 0, 1)),
        (RowRange(1, 1, 2),),
        (RowRange(1, 2, 3),),
        (RowRange(1, 3, 4),),
    ]


def test_bytes_are_those_of_the_columns_that_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    write_input(tmp_path / "a.parquet", [row | {"other": noise.bytes(50_000)} for row in rows(4)])
    many = plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out", shard_bytes=60_000), "m")
    assert len(many.shards) == 1, "a column that no run reads weighs nothing"
    carried = {"segment": SegmentSettings(carry=("other",))}
    assert (
        len(
            plan_of(
                run_settings(
                    tmp_path / "a.parquet", tmp_path / "out", shard_bytes=60_000, **carried
                ),
                "m",
            ).shards
        )
        == 4
    )


def test_a_limit_in_bytes_that_is_not_reached_changes_no_shard(tmp_path: Path) -> None:
    write_input(tmp_path / "a.parquet", rows(7), row_group_size=3)
    ids = [
        [
            shard.shard_id
            for shard in plan_of(
                run_settings(tmp_path / "a.parquet", tmp_path / "out", shard_rows=4, **options), "m"
            ).shards
        ]
        for options in ({}, {"shard_bytes": 10_000_000})
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2


def test_folder_glob_and_file_name_the_same_rows(tmp_path: Path) -> None:
    write_input(tmp_path / "in/a.parquet", rows(3))
    write_input(tmp_path / "in/deep/b.parquet", rows(2, 3))
    write_input(tmp_path / "in/_tmp/c.parquet", rows(9))
    write_input(tmp_path / "in/.hidden.parquet", rows(9))
    folder = plan_of(run_settings(tmp_path / "in", tmp_path / "out"), "m")
    assert [(shard.name, shard.rows) for shard in folder.shards] == [
        ("a.parquet", 3),
        ("deep/b.parquet", 2),
    ]
    one = plan_of(run_settings(tmp_path / "in/a.parquet", tmp_path / "out"), "m")
    globbed = plan_of(run_settings(f"{tmp_path}/in/*.parquet", tmp_path / "out"), "m")
    assert one.shards == globbed.shards == folder.shards[:1]


@pytest.mark.parametrize("pattern", ["*.parquet", "?.parquet", "[ab].parquet", "**/?.parquet"])
def test_names_do_not_depend_on_how_or_where_the_input_lies(tmp_path: Path, pattern: str) -> None:
    for place in ("here", ".there/_deep"):
        write_input(tmp_path / place / "a.parquet", rows(3))
        plan = plan_of(run_settings(f"{tmp_path}/{place}/{pattern}", tmp_path / "out"), "m")
        assert [shard.name for shard in plan.shards] == ["a.parquet"]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    write_input(tmp_path / "run[1]/a.parquet", rows(3))
    for path in ("run[1]/a.parquet", "run[1]"):
        assert [
            shard.name
            for shard in plan_of(run_settings(tmp_path / path, tmp_path / "out"), "m").shards
        ] == ["a.parquet"]


def test_identity_follows_content_model_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_input(path, rows(3))
    base = run_settings(path, tmp_path / "out")

    def ids(settings: RunSettings = base, revision: str = "m") -> set[str]:
        return {shard.shard_id for shard in plan_of(settings, revision).shards}

    first = ids()
    assert ids() == first
    assert ids(base.model_copy(update={"workers": 7, "batch_rows": 3})) == first, (
        "how a run is executed does not change what comes out"
    )
    assert ids(revision="other").isdisjoint(first)
    assert ids(
        base.model_copy(update={"segment": SegmentSettings(refiner_iterations=1)})
    ).isdisjoint(first)
    write_input(path, rows(4))
    assert ids().isdisjoint(first)


def test_repeated_row_ids_are_found_across_files(tmp_path: Path) -> None:
    write_input(tmp_path / "in/a.parquet", rows(3))
    write_input(tmp_path / "in/b.parquet", [*rows(2, 10), *rows(1, 1), *rows(1, 10)])
    plan = plan_of(run_settings(tmp_path / "in", tmp_path / "out", shard_rows=2), "m")
    assert [(shard.name, shard.first_row, shard.duplicates) for shard in plan.shards] == [
        ("a.parquet", 0, ()),
        ("a.parquet", 2, ()),
        ("b.parquet", 0, ()),
        ("b.parquet", 2, (0, 1)),
    ]


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4), st.integers(1, 5)
)
@settings(derandomize=True, deadline=None, max_examples=25)
def test_of_rows_with_one_id_all_but_the_first_are_duplicates(
    ids: list[list[int]], shard_rows: int
) -> None:
    with TemporaryDirectory() as folder:
        for number, own in enumerate(ids):
            table = pa.table(
                {
                    "image": pa.array(["a.png"] * len(own), pa.string()),
                    "query": pa.array(["x"] * len(own), pa.string()),
                    "row_id": pa.array(own, pa.int64()),
                }
            )
            pq.write_table(table, f"{folder}/{number}.parquet")
        shards = plan_of(
            run_settings(Path(folder), Path(folder, "out"), shard_rows=shard_rows), "m"
        ).shards
    flat = [value for own in ids for value in own]
    expected = [at for at, value in enumerate(flat) if value in flat[:at]]
    starts = {str(number): sum(len(own) for own in ids[:number]) for number in range(len(ids))}
    assert [
        starts[s.name.removesuffix(".parquet")] + s.first_row + at
        for s in shards
        for at in s.duplicates
    ] == expected


def test_planning_time_grows_linearly_with_repeated_rows(tmp_path: Path) -> None:
    """If each of 800 shards looked through all 200,000 repeated rows, it would take 8 seconds."""
    file = InputFile(uri="u", name="a", fingerprint="f", size=1, row_groups=(RowGroup(200_000, 1),))
    asked = run_settings(tmp_path / "a.parquet", tmp_path / "out", shard_rows=250)
    began = time.process_time()
    shards = list(file_shards(file, asked, "m", tuple(range(200_000))))
    assert time.process_time() - began < 3, "it takes a tenth of a second"
    assert {len(shard.duplicates) for shard in shards} == {250}


def test_different_ids_of_equal_hash_are_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wordmask.tasks.plan.hash", lambda value: 7, raising=False)
    test_repeated_row_ids_are_found_across_files(tmp_path)
    test_null_row_ids_repeat_nothing(tmp_path)


def test_null_row_ids_repeat_nothing(tmp_path: Path) -> None:
    table = [
        {"row_id": None, "image": png(), "query": "x"},
        {"row_id": None, "image": png(), "query": "x"},
        {"row_id": "a", "image": png(), "query": "x"},
    ]
    write_input(tmp_path / "a.parquet", table)
    assert (
        plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m").shards[0].duplicates
        == ()
    )


def test_an_empty_table_is_a_plan_without_shards(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.string()), ("query", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    assert plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m").rows == 0


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"query": pa.string()}, ["no column 'image'", "--image-column"]),
        ({"image": pa.binary()}, ["no column 'query'", "--query-column"]),
        ({"image": pa.int64(), "query": pa.string()}, ["'image' is int64", "must be"]),
        ({"image": pa.binary(), "query": pa.float32()}, ["'query' is float", "must be string"]),
        (
            {"image": pa.binary(), "query": pa.string(), "row_id": pa.float64()},
            ["'row_id'", "string or integer"],
        ),
        (
            {"image": pa.binary(), "query": pa.string(), "spatial_refs": pa.string()},
            ["'spatial_refs'", "list<list<float>>"],
        ),
        ({"image": pa.binary(), "query": pa.string(), "mode": pa.int8()}, ["'mode'", "string"]),
    ],
)
def test_unusable_tables_are_one_clear_error(
    tmp_path: Path, schema: dict[str, pa.DataType], words: list[str]
) -> None:
    pq.write_table(pa.schema(list(schema.items())).empty_table(), tmp_path / "a.parquet")
    with pytest.raises(InputError) as caught:
        plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m")
    assert all(word in str(caught.value) for word in ["a.parquet", *words])


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ],
)
def test_image_columns_of_every_usable_type(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(
        pa.schema([("picture", kind), ("query", pa.large_string())]).empty_table(),
        tmp_path / "a.parquet",
    )
    segment = SegmentSettings(columns=Columns(image="picture"))
    plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out", segment=segment), "m")


def test_carry_of_an_unknown_or_clashing_column(tmp_path: Path) -> None:
    write_input(tmp_path / "a.parquet", [{"image": png(), "query": "x", "area": 3}])
    for carry, words in (("nope", "no column 'nope'"), ("area", "cannot be carried")):
        with pytest.raises(InputError, match=words):
            plan_of(
                run_settings(
                    tmp_path / "a.parquet",
                    tmp_path / "out",
                    segment=SegmentSettings(carry=(carry,)),
                ),
                "m",
            )


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table(
        [pa.array([b""]), pa.array(["x"]), pa.array(["y"])], names=["image", "query", "query"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: 2 columns are named 'query'"):
        plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m")


def test_damaged_footers_are_named(tmp_path: Path) -> None:
    write_input(tmp_path / "a.parquet", rows(3))
    data = (tmp_path / "a.parquet").read_bytes()
    for damaged in (
        b"",
        data[: len(data) // 2],
        data[:-60] + b"\xff" * 52 + data[-8:],
        data[:-8] + bytes(4) + b"PAR1",
    ):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.parquet: not a readable Parquet file"):
            plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m")


def test_a_store_that_fails_is_not_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "a.parquet", rows(1))

    def refuse(handle: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("wordmask.tasks.table.footers.pq.ParquetFile", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m")


def test_nothing_there_and_not_parquet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet file"):
        plan_of(run_settings(tmp_path / "nowhere", tmp_path / "out"), "m")
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        plan_of(run_settings(tmp_path, tmp_path / "out"), "m")


@pytest.mark.parametrize(
    ("input", "output"),
    [("in", "in"), ("in", "in/out"), ("in", "."), ("in/a.parquet", "in"), ("in/*.parquet", "in")],
)
def test_tables_that_runs_write_are_no_input_wherever_the_output_lies(
    tmp_path: Path, input: str, output: str
) -> None:
    write_input(tmp_path / "in/a.parquet", rows(3))
    settings = run_settings(tmp_path / input, tmp_path / output)
    for _ in range(2):
        carry_out(plan_of(settings, REVISION), settings)
    name_garbage(Store.open(settings.output), keep_runs=1)
    again = plan_of(settings, REVISION)
    assert (again.files, again.rows, again.pending) == (1, 3, ())


def test_a_column_that_is_there_twice_cannot_be_carried(tmp_path: Path) -> None:
    table = pa.table(
        [pa.array(["a.png"]), pa.array(["x"]), pa.array([1]), pa.array([2])],
        names=["image", "query", "n", "n"],
    )
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match="2 columns are named 'n', so none can be carried"):
        plan_of(
            run_settings(
                tmp_path / "in.parquet", tmp_path / "out", segment=SegmentSettings(carry=("n",))
            ),
            "m",
        )


def test_counts_say_how_many_rows_are_done_new_changed_and_invalid(tmp_path: Path) -> None:
    for name, first in (("same", 0), ("edited", 10)):
        write_input(tmp_path / f"in/{name}.parquet", rows(3, first))
    settings = run_settings(tmp_path / "in", tmp_path / "out", shard_rows=2)
    before = plan_of(settings, REVISION)
    carry_out(before, settings)
    write_input(tmp_path / "in/edited.parquet", rows(4, 10))
    write_input(tmp_path / "in/fresh.parquet", rows(5, 20))
    pq.write_table(pa.table({"query": ["x"] * 6}), tmp_path / "in/wrong.parquet")
    (tmp_path / "in/broken.parquet").write_text("not parquet")
    plan = plan_of(settings, REVISION, refuse=False)
    counts = plan.counts()
    told = {
        name: counts[f"rows_{name}"] for name in ("done", "changed", "new", "invalid", "pending")
    }
    assert told == {"done": 3, "changed": 4, "new": 5, "invalid": 6, "pending": 9}
    assert (counts["rows"], counts["files"], counts["files_invalid"]) == (18, 5, 2)
    assert [(file.name, file.rows) for file in plan.unusable] == [
        ("broken.parquet", None),
        ("wrong.parquet", 6),
    ]
    assert "no column 'image'" in plan.unusable[1].why
    with pytest.raises(InputError, match=r"broken\.parquet"):
        plan_of(settings, REVISION)
    other = plan_of(settings, "another model", refuse=False).counts()
    assert (other["rows_done"], other["rows_changed"], other["rows_new"]) == (0, 7, 5)


def test_an_input_of_unusable_files_alone_is_an_error_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        plan_of(run_settings(tmp_path, tmp_path / "out"), "m", refuse=False)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (["a", "a", "b", "b", "a", "a"], (1, 3)),
        (["a", "a", "a", "b"], None),
        (["a", "a", None, None, "b", "b"], (1, 2)),
        (["a", None], None),
        ([None, None], (0, 0)),
        ([], (0, 0)),
    ],
)
@pytest.mark.parametrize("struct", [False, True])
def test_distinct_images_are_counted_where_footers_say(
    tmp_path: Path, images: list[str | None], told: tuple[int, int] | None, struct: bool
) -> None:
    paths = pa.array(images, pa.string())
    bytes_ = pa.nulls(len(images), pa.binary())
    image = pa.StructArray.from_arrays([bytes_, paths], ["bytes", "path"]) if struct else paths
    pq.write_table(
        pa.table({"image": image, "query": pa.array(["x"] * len(images))}),
        tmp_path / "a.parquet",
        row_group_size=2,
    )
    assert plan_of(run_settings(tmp_path / "a.parquet", tmp_path / "out"), "m").images == told


def test_a_count_of_distinct_values_is_believed() -> None:
    counted = SimpleNamespace(
        has_null_count=True, null_count=0, has_distinct_count=True, distinct_count=5
    )
    group = SimpleNamespace(num_rows=9, column=lambda at: SimpleNamespace(statistics=counted))
    assert _distinct_images(group, [0]) == 5
    assert (
        _distinct_images(
            SimpleNamespace(num_rows=9, column=lambda at: SimpleNamespace(statistics=None)), [0]
        )
        is None
    )
