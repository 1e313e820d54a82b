"""The files of an input, and the content of their footers.

A footer gives rows, bytes and columns, and sometimes how many images there are. No row is read.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.schemas.queries import InputError, check_columns, columns_read
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.output.catalog import is_own_table
from wordmask.tasks.storage import Store, fingerprint, is_damaged_parquet, retry_reads
from wordmask.tasks.table.relative_uris import may_have_relative_uris

FOOTERS_AT_ONCE = 16
PARQUET_SUFFIXES = (".parquet", ".pq")
HIDDEN_PREFIXES = (".", "_")  # such names are not data, by the convention of Hadoop and Spark


class RowGroup(NamedTuple):
    """A row group of a file.

    `bytes`: of the columns that a run reads, compressed. `images`: how many distinct ones there
    are, None where the footer does not say.
    """

    rows: int
    bytes: int
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A Parquet file of the input, and the content of its footer.

    `name` is relative to the input. `problem` says why a run cannot use the file. `readable`: at
    least the footer can be read. `image_folder`: where relative image URIs start, "" where the
    footer proves that there are none.
    """

    uri: str
    name: str
    fingerprint: str
    size: int
    row_groups: tuple[RowGroup, ...] = ()
    has_row_ids: bool = False
    image_folder: str = ""
    readable: bool = True
    problem: str | None = None

    @property
    def rows(self) -> int:
        """Rows of the file, 0 where the footer cannot be read."""
        return sum(group.rows for group in self.row_groups)


class _Listing(NamedTuple):
    """Files of an input by path, with what the store says of each; names are relative to `base`."""

    base: str
    files: list[tuple[str, dict[str, Any]]]


def input_files(
    source: Store, output: Store, settings: SegmentSettings, *, refuse: bool = True
) -> list[InputFile]:
    """Return every Parquet file of the input, sorted by name, without those that runs wrote.

    Args:
        source: the store of the input: a file, a folder or a glob.
        output: the store of the output, which may lie in the input.
        settings: they name the columns.
        refuse: raise on the first file that a run cannot use, instead of giving it with its
            problem.

    Raises:
        InputError: there is no file, or `refuse` and one cannot be used, or none can.
    """
    listing = retry_reads(lambda: _find(source))
    found = listing.files
    if output.fs == source.fs:
        found = [(path, info) for path, info in found if not _is_part(path, output)]
    if not found:
        patterns = ", ".join(f"*{suffix}" for suffix in PARQUET_SUFFIXES)
        raise InputError(f"input {source.uri}: no Parquet file there ({patterns}). Check the path")

    def read(item: tuple[str, dict[str, Any]]) -> InputFile:
        path, info = item
        name = path.removeprefix(listing.base).lstrip("/")
        return _input_file(source.at(path), info, name, settings)

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        files = list(pool.map(read, found))
    problems = [file.problem for file in files if file.problem]
    if problems and (refuse or len(problems) == len(files)):
        raise InputError(problems[0])
    return files


def distinct_images(files: Iterable[InputFile]) -> tuple[int, int] | None:
    """Return the least and the most distinct images there can be, or None if a footer is silent."""
    counts: list[int] = []
    for file in files:
        for group in file.row_groups:
            if group.rows == 0:
                continue
            if group.images is None:
                return None
            counts.append(group.images)
    return max(counts, default=0), sum(counts)


def _is_part(path: str, output: Store) -> bool:
    """Return whether a file is a part that a run wrote to the output."""
    folder = f"{output.root}/"
    return path.startswith(folder) and is_own_table(path.removeprefix(folder))


def _find(source: Store) -> _Listing:
    """Return the files of an input. A folder is searched with those below it.

    A path that exists under its very name is no pattern.
    """
    fs, root = source.fs, source.root
    if fs.isfile(root):
        return _Listing(root.rsplit("/", 1)[0], [(root, fs.info(root))])
    if glob.has_magic(root) and not fs.isdir(root):
        fixed = takewhile(lambda part: not glob.has_magic(part), root.split("/"))
        base = "/".join(fixed)
        entries = fs.glob(root, detail=True)
    else:
        base = root
        entries = fs.find(root, detail=True)
    files = [(path, info) for path, info in entries.items() if _is_data(path, info, base)]
    files.sort(key=lambda item: item[0])
    return _Listing(base, files)


def _is_data(path: str, info: dict[str, Any], base: str) -> bool:
    if info["type"] != "file" or not path.endswith(PARQUET_SUFFIXES):
        return False
    inside = path.removeprefix(base).split("/")
    return not any(part.startswith(HIDDEN_PREFIXES) for part in inside)


def _input_file(
    store: Store, info: dict[str, Any], name: str, settings: SegmentSettings
) -> InputFile:
    unread = InputFile(
        uri=store.uri, name=name, fingerprint=fingerprint(info), size=int(info["size"])
    )
    try:
        footer, schema = _read_footer(store)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        problem = (
            f"input {name}: not a readable Parquet file ({error}). Export it again, or move it out"
            " of the input"
        )
        return replace(unread, readable=False, problem=problem)
    columns = columns_read(schema, settings)
    groups = tuple(_row_groups(footer, columns, settings.columns.image))
    try:
        check_columns(schema, settings, name)
    except InputError as error:
        return replace(unread, row_groups=groups, problem=str(error))
    return replace(
        unread,
        row_groups=groups,
        has_row_ids=settings.columns.row_id in schema.names,
        image_folder=_image_folder(store, footer, schema, settings.columns.image),
    )


def _image_folder(store: Store, footer: pq.FileMetaData, schema: pa.Schema, image: str) -> str:
    if may_have_relative_uris(footer, schema, image, is_local=store.is_local):
        return store.uri.rsplit("/", 1)[0]
    return ""


def _read_footer(store: Store) -> tuple[pq.FileMetaData, pa.Schema]:
    with store.reading("") as handle:
        file = pq.ParquetFile(handle, pre_buffer=False)
        # Not the schema of `metadata`: the two would hold each other, and ten thousand footers
        # would wait for the garbage collector.
        return file.metadata, file.schema_arrow


def _row_groups(footer: pq.FileMetaData, columns: Sequence[str], image: str) -> Iterator[RowGroup]:
    if footer.num_row_groups == 0:
        return
    first = footer.row_group(0)
    leaves = [first.column(index).path_in_schema for index in range(footer.num_columns)]
    read = [index for index, leaf in enumerate(leaves) if _is_of(leaf, columns)]
    image_leaves = (f"{image}.bytes", f"{image}.path", image)
    images = [leaves.index(leaf) for leaf in image_leaves if leaf in leaves]
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        size = sum(group.column(index).total_compressed_size for index in read)
        yield RowGroup(group.num_rows, size, _distinct_images(group, images))


def _is_of(leaf: str, columns: Sequence[str]) -> bool:
    """Return whether a leaf of the schema, such as `image.bytes`, belongs to one of the columns."""
    return any(leaf == name or leaf.startswith(f"{name}.") for name in columns)


def _distinct_images(group: pq.RowGroupMetaData, columns: Sequence[int]) -> int | None:
    """Return how many distinct images a row group has, or None where the footer does not say.

    The first column that is not all null counts, as a run takes bytes before a path.
    """
    for column in columns:
        statistics = group.column(column).statistics
        if statistics is None or not statistics.has_null_count:
            return None
        if statistics.null_count == group.num_rows:
            continue
        if statistics.null_count > 0:
            return None
        return _distinct_values(statistics)
    return 0


def _distinct_values(statistics: pq.Statistics) -> int | None:
    if statistics.has_distinct_count:
        return int(statistics.distinct_count)
    if statistics.has_min_max and statistics.min == statistics.max:
        return 1
    return None
