"""The input table: which columns it must have, and of which types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.types as pt

from wordmask.schemas.masks import MASKS
from wordmask.schemas.settings import SegmentSettings

# An image in the layout of Hugging Face datasets: its bytes, or a path or URI.
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


class InputError(ValueError):
    """A table that cannot be used at all.

    The message names the column, what was found, what is needed and the remedy.
    """


class _InputColumn(NamedTuple):
    """A column that a run reads. `option` names it on the command line, if it must exist."""

    name: str
    fits: Callable[[pa.DataType], bool]
    expected: str
    option: str | None = None


def _input_columns(settings: SegmentSettings) -> Iterator[_InputColumn]:
    columns = settings.columns
    image = "struct<bytes: binary, path: string>, binary or string"
    yield _InputColumn(columns.image, _is_image, image, "--image-column")
    yield _InputColumn(columns.query, _is_string, "string", "--query-column")
    yield _InputColumn(columns.row_id, _is_id, "string or integer")
    yield _InputColumn(columns.spatial_refs, _is_refs, "list<list<float>>")
    yield _InputColumn(columns.mode, _is_string, "string")


def check_columns(
    schema: pa.Schema, settings: SegmentSettings, file: str, carried: pa.Schema | None = None
) -> None:
    """Check that the needed columns are there, and that all that are used have usable types.

    Args:
        schema: of the file.
        settings: the names of the columns.
        file: the file's name, for messages.
        carried: the columns that can be carried, if others than the file's.

    Raises:
        InputError: one is missing, is there twice, has another type or cannot be carried.
    """
    for column in _input_columns(settings):
        _check_column(schema, column, file)
    for name in settings.carry:
        _check_carried(carried or schema, name, file)


def _check_column(schema: pa.Schema, column: _InputColumn, file: str) -> None:
    name = column.name
    count = schema.names.count(name)
    if count > 1:
        raise InputError(
            f"{file}: {count} columns are named {name!r}. Rename all but one, or name another"
            " column"
        )
    if count == 0:
        if column.option is None:
            return
        raise InputError(
            f"{file}: no column {name!r}; it has {', '.join(schema.names) or 'none'}. Name the"
            f" right one with {column.option}"
        )
    found = schema.field(name).type
    if not column.fits(found):
        raise InputError(
            f"{file}: column {name!r} is {found}, but must be {column.expected}. Cast it, or name"
            " another column"
        )


def _check_carried(schema: pa.Schema, name: str, file: str) -> None:
    count = schema.names.count(name)
    if count == 0:
        raise InputError(f"{file}: no column {name!r} to carry; it has {', '.join(schema.names)}")
    if count > 1:
        raise InputError(
            f"{file}: {count} columns are named {name!r}, so none can be carried. Rename all but"
            " one"
        )
    if name in MASKS.names:
        raise InputError(
            f"{file}: column {name!r} cannot be carried: the masks table has a column of that name."
            " Rename it in the input"
        )


def columns_read(schema: pa.Schema, settings: SegmentSettings) -> list[str]:
    """Return the columns of a table that a run reads, in a fixed order."""
    names = (*settings.columns.model_dump().values(), *settings.carry)
    return [name for name in dict.fromkeys(names) if name in schema.names]


def _is_string(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return _is_string(kind.value_type)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_null(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind))


def _is_image(kind: pa.DataType) -> bool:
    if not pt.is_struct(kind):
        return _is_string(kind) or _is_binary(kind)
    fields = {field.name: field.type for field in kind}
    data = fields.get("bytes", pa.string())  # a string, which is no binary, where there is none
    path = fields.get("path", pa.string())
    return _is_binary(data) and _is_string(path)


def _is_id(kind: pa.DataType) -> bool:
    return bool(_is_string(kind) or pt.is_integer(kind))


def _is_refs(kind: pa.DataType) -> bool:
    """Return whether a type is that of lists of lists of numbers, or can be empty only."""
    if pt.is_null(kind):
        return True
    if not _is_list(kind):
        return False
    inner = kind.value_type
    if pt.is_null(inner):
        return True
    return _is_list(inner) and _is_number(inner.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_floating(kind) or pt.is_integer(kind) or pt.is_null(kind))
