"""Whether image URIs of an input file may be relative, as far as its footer proves it.

Relative URIs start at the folder of the file: what they lead to is another image in another folder.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
LOCAL_ROOT = "/"


def may_have_relative_uris(
    footer: pq.FileMetaData, schema: pa.Schema, image: str, *, is_local: bool
) -> bool:
    """Return whether an image URI of a file may be relative, which a silent footer cannot exclude.

    Args:
        footer: the file's footer.
        schema: its Arrow schema.
        image: the column of images.
        is_local: the file lies on a disk, so that paths which begin with / are absolute.
    """
    leaf = _uri_leaf(schema, image)
    if leaf is None:
        return False
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    return any(_may_have_relative(group, leaf, image, is_local) for group in groups)


def _uri_leaf(schema: pa.Schema, image: str) -> str | None:
    """Return the leaf of the schema that holds URIs, None where there is none."""
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        if kind.get_field_index("path") < 0:
            return None
        return f"{image}.path"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return None
    return image


def _may_have_relative(group: pq.RowGroupMetaData, leaf: str, image: str, is_local: bool) -> bool:
    columns = (group.column(index) for index in range(group.num_columns))
    statistics = {column.path_in_schema: column.statistics for column in columns}
    embedded = statistics.get(f"{image}.bytes")
    if embedded is not None and _null_count(embedded) == 0:
        return False  # a run takes bytes before a path
    uris = statistics[leaf]
    if uris is None:
        return True
    if _null_count(uris) == group.num_rows:
        return False
    return not _are_absolute(uris, is_local)


def _null_count(statistics: pq.Statistics) -> int | None:
    if not statistics.has_null_count:
        return None
    return int(statistics.null_count)


def _are_absolute(statistics: pq.Statistics, is_local: bool) -> bool:
    """Return whether all values are absolute: all that lies between two values of a prefix has it.

    That holds also of bounds that a writer cut short.
    """
    if not statistics.has_min_max:
        return False
    try:
        least, most = str(statistics.min), str(statistics.max)
    except UnicodeDecodeError:
        return False
    if is_local and least.startswith(LOCAL_ROOT):
        return most.startswith(LOCAL_ROOT)
    scheme = SCHEME.match(least)
    return scheme is not None and most.startswith(scheme.group())
