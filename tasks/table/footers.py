"""The files of an input, and what their footers say: rows, bytes, columns, and sometimes how many
images. No row is read.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.schemas.queries import InputError, check_columns, columns_read
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.storage import Store, fingerprint, is_damaged_parquet, steadily

FOOTERS_AT_ONCE = 16
OUR_PARTS = r"(masks|rejects)/part-[0-9a-f]{32}-[0-9a-f]{16}\.parquet"  # as tasks.write names them
PARQUET_SUFFIXES = (".parquet", ".pq")


class RowGroup(NamedTuple):
    """`bytes`: of the columns that a run reads, compressed. `images`: how many distinct ones, None
    if the footer does not tell.
    """

    rows: int
    bytes: int
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One Parquet file of the input and what its footer says. `name` is relative to the input.
    `problem`: why a run cannot use it.
    """

    uri: str
    name: str
    fingerprint: str
    size: int
    row_groups: tuple[RowGroup, ...] = ()
    has_row_ids: bool = False
    readable: bool = True
    problem: str | None = None

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.row_groups)


def input_files(
    store: Store, output: Store, settings: SegmentSettings, *, refuse: bool = True
) -> list[InputFile]:
    """Every Parquet file of the input, sorted by name. What runs wrote to the output is not part of
    it.

    Raises:
        InputError: there is none, or `refuse` and one is of no use to a run, or all are.
    """
    base, found = steadily(lambda: _find(store))
    if output.fs == store.fs:
        ours = re.compile(re.escape(f"{output.root}/") + OUR_PARTS)
        found = [(path, info) for path, info in found if not ours.fullmatch(path)]
    if not found:
        raise InputError(
            f"input {store.uri}: no Parquet file there"
            f" ({', '.join('*' + s for s in PARQUET_SUFFIXES)}). Check the path"
        )
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        files = list(
            pool.map(lambda item: _input_file(store, *item, base=base, settings=settings), found)
        )
    problems = [file.problem for file in files if file.problem]
    if problems and (refuse or len(problems) == len(files)):
        raise InputError(problems[0])
    return files


def distinct_images(files: list[InputFile]) -> tuple[int, int] | None:
    """The least and the most that there can be, where every footer tells those of its row groups;
    else None.
    """
    counts = [group.images for file in files for group in file.row_groups if group.rows]
    known = [count for count in counts if count is not None]
    return (max(known, default=0), sum(known)) if len(known) == len(counts) else None


def _find(store: Store) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The folder that names are relative to, and (path, info) of each file. A folder is searched
    recursively; below it, names that start with . or _ are not data. What exists under its very
    name is no pattern."""
    if store.fs.isfile(store.root):
        return store.root.rsplit("/", 1)[0], [(store.root, store.fs.info(store.root))]
    if glob.has_magic(store.root) and not store.fs.isdir(store.root):
        base = "/".join(takewhile(lambda part: not glob.has_magic(part), store.root.split("/")))
        entries = store.fs.glob(store.root, detail=True)
    else:
        base, entries = store.root, store.fs.find(store.root, detail=True)

    def is_data(path: str) -> bool:
        inside = path.removeprefix(base).split("/")
        return path.endswith(PARQUET_SUFFIXES) and not any(
            part.startswith((".", "_")) for part in inside
        )

    return base, sorted(
        (path, info) for path, info in entries.items() if info["type"] == "file" and is_data(path)
    )


def _input_file(
    store: Store, path: str, info: dict[str, Any], *, base: str, settings: SegmentSettings
) -> InputFile:
    name = path.removeprefix(base).lstrip("/")
    known: dict[str, Any] = {
        "uri": store.fs.unstrip_protocol(path),
        "name": name,
        "fingerprint": fingerprint(info),
        "size": int(info["size"]),
    }
    try:
        with store.at(path).reading("") as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            # Not `footer.schema`: the two would hold each other, and ten thousand footers would
            # wait for the garbage collector.
            footer, schema = file.metadata, file.schema_arrow
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        problem = (
            f"input {name}: not a readable Parquet file ({error}). Export it again, or move it out"
            " of the input"
        )
        return InputFile(**known, readable=False, problem=problem)
    groups = tuple(_row_groups(footer, columns_read(schema, settings), settings.columns.image))
    try:
        check_columns(schema, settings, name)
    except InputError as error:
        return InputFile(**known, row_groups=groups, problem=str(error))
    return InputFile(
        **known, row_groups=groups, has_row_ids=settings.columns.row_id in schema.names
    )


def _row_groups(footer: pq.FileMetaData, columns: list[str], image: str) -> Iterator[RowGroup]:
    leaves = (
        [footer.row_group(0).column(at).path_in_schema for at in range(footer.num_columns)]
        if footer.num_row_groups
        else []
    )
    read = [
        at
        for at, path in enumerate(leaves)
        if any(path == name or path.startswith(f"{name}.") for name in columns)
    ]
    pictures = [
        leaves.index(path) for path in (f"{image}.bytes", f"{image}.path", image) if path in leaves
    ]
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        size = sum(group.column(at).total_compressed_size for at in read)
        yield RowGroup(group.num_rows, size, _images(group, pictures))


def _images(group: pq.RowGroupMetaData, pictures: list[int]) -> int | None:
    """Distinct images of a row group, by the first of the columns that is not all null: as a run
    takes bytes before a path.
    """
    for at in pictures:
        found = group.column(at).statistics
        if found is None or not found.has_null_count or 0 < found.null_count < group.num_rows:
            return None
        if found.null_count == group.num_rows:
            continue
        if found.has_distinct_count:
            return int(found.distinct_count)
        return 1 if found.has_min_max and found.min == found.max else None
    return 0
