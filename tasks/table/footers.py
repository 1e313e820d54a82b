"""The files of an input, and the content of their footers.

A footer gives rows, bytes and columns, and sometimes how many images there are. No row is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.schemas.losses import LeftOut
from wordmask.schemas.queries import InputError, check_columns, columns_read
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.inputs.kinds import why_not_parquet
from wordmask.tasks.inputs.lake import list_tables
from wordmask.tasks.inputs.listing import Entry, Listing, printable
from wordmask.tasks.inputs.partitions import chosen, may_be_chosen, with_partition
from wordmask.tasks.storage import Store, fingerprint, is_damaged_parquet
from wordmask.tasks.table.relative_uris import may_have_relative_uris

FOOTERS_AT_ONCE = 16


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
    least the footer can be read. `partition`: columns that its folders or its table's log give.
    `image_folder`: where relative image URIs start, "" where the
    footer proves that there are none.
    """

    uri: str
    name: str
    fingerprint: str
    size: int
    row_groups: tuple[RowGroup, ...] = ()
    has_row_ids: bool = False
    image_folder: str = ""
    partition: dict[str, str | None] = field(default_factory=dict)
    readable: bool = True
    problem: str | None = None

    @property
    def rows(self) -> int:
        """Rows of the file, 0 where the footer cannot be read."""
        return sum(group.rows for group in self.row_groups)


class Input(NamedTuple):
    """The Parquet files of an input, and what else lies there and is not read."""

    files: list[InputFile]
    left_out: tuple[LeftOut, ...]


def input_files(settings: RunSettings, output: Store, *, refuse: bool = True) -> Input:
    """Return every Parquet file of the input, sorted by name, without those that runs wrote.

    Args:
        settings: the input, the partitions asked for, and the names of the columns.
        output: the store of the output, which may lie in the input.
        refuse: raise on the first file that a run cannot use, instead of giving it with its
            problem.

    Raises:
        InputError: there is no file, or `refuse` and one cannot be used, or none can.
    """
    source = Store.open(settings.input)
    listing, partitions = list_tables(settings, output)
    _require_tables(listing, source)
    wanted = chosen(partitions, settings.where)

    def read(item: Entry) -> InputFile:
        path, info = item
        store = source.at(path)
        unread = InputFile(
            uri=store.uri,
            name=listing.name(path),
            fingerprint=fingerprint(info),
            size=int(info["size"]),
            partition=dict(partitions[path]),
        )
        return _with_footer(unread, store, settings.segment)

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        files = list(pool.map(read, (entry for entry in listing.tables if entry[0] in wanted)))
    bad = _bad_files(listing, source)
    files += (file for file in bad if may_be_chosen(file.name, settings.where))
    files.sort(key=lambda file: file.name)
    problems = [file.problem for file in files if file.problem]
    if problems and (refuse or len(problems) == len(files)):
        raise InputError(problems[0])
    return Input(files, listing.left_out())


def _require_tables(listing: Listing, source: Store) -> None:
    if listing.tables or listing.bad:
        return
    left = "".join(f"; {told}" for told in map(str, listing.left_out()))
    raise InputError(f"input {source.uri}: no Parquet file there{left}. Check the path")


def _bad_files(listing: Listing, source: Store) -> Iterator[InputFile]:
    for path, why in listing.bad.items():
        name = listing.name(path)
        yield InputFile(
            uri=printable(source.at(path).uri),
            name=name,
            fingerprint="",
            size=0,
            readable=False,
            problem=_problem(name, printable(why)),
        )


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


def _with_footer(file: InputFile, store: Store, settings: SegmentSettings) -> InputFile:
    """Return a file with what its footer says, or with what is wrong with it."""
    try:
        footer, schema = _read_footer(store)
    except PermissionError as error:
        why = f"a file that may not be read ({error.strerror or error})"
        return replace(file, readable=False, problem=_problem(file.name, why))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        why = why_not_parquet(store, file.size) or f"damaged ({error})"
        return replace(file, readable=False, problem=_problem(file.name, why))
    columns = columns_read(schema, settings)
    groups = tuple(_row_groups(footer, columns, settings.columns.image))
    try:
        carried = with_partition(schema, file.partition)
        check_columns(schema, settings, file.name, carried)
    except InputError as error:
        return replace(file, row_groups=groups, problem=str(error))
    return replace(
        file,
        row_groups=groups,
        has_row_ids=settings.columns.row_id in schema.names,
        image_folder=_image_folder(store, footer, schema, settings.columns.image),
    )


def _problem(name: str, why: str) -> str:
    return (
        f"input {name}: not a readable Parquet file: it is {why}. Export it again, or move it out"
        " of the input, or leave it out with --skip-bad-files"
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
