"""The input table: which columns it must have, and of which types."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

from wordmask.schemas.masks import MASKS
from wordmask.schemas.settings import SegmentSettings


class InputError(ValueError):
    """A table that cannot be used at all. The message names the column, what was found, what is
    needed and the remedy.
    """


def check_columns(schema: pa.Schema, settings: SegmentSettings, file: str) -> None:
    """Raises InputError unless every column that is there and used has a usable type, and the
    needed ones are there.
    """
    columns = settings.columns
    for name, fits, expected in (
        (columns.image, _is_image, "struct<bytes: binary, path: string>, binary or string"),
        (columns.query, _is_string, "string"),
        (columns.row_id, _is_id, "string or integer"),
        (columns.spatial_refs, _is_refs, "list<list<float>>"),
        (columns.mode, _is_string, "string"),
    ):
        if (count := schema.names.count(name)) > 1:
            raise InputError(
                f"{file}: {count} columns are named {name!r}. Rename all but one, or name another"
                " column"
            )
        if count:
            if not fits(schema.field(name).type):
                raise InputError(
                    f"{file}: column {name!r} is {schema.field(name).type}, but must be {expected}."
                    " Cast it, or name another column"
                )
        elif name in (columns.image, columns.query):
            option = "--image-column" if name == columns.image else "--query-column"
            raise InputError(
                f"{file}: no column {name!r}; it has {', '.join(schema.names) or 'none'}. Name the"
                f" right one with {option}"
            )
    for name in settings.carry:
        if name not in schema.names:
            raise InputError(
                f"{file}: no column {name!r} to carry; it has {', '.join(schema.names)}"
            )
        if schema.names.count(name) > 1:
            raise InputError(
                f"{file}: {schema.names.count(name)} columns are named {name!r}, so none can be"
                " carried. Rename all but one"
            )
        if name in MASKS.names:
            raise InputError(
                f"{file}: column {name!r} cannot be carried: the masks table has a column of that"
                " name. Rename it in the input"
            )


def columns_read(schema: pa.Schema, settings: SegmentSettings) -> list[str]:
    """The columns of this table that a run reads, in a fixed order."""
    names = (*settings.columns.model_dump().values(), *settings.carry)
    return [name for name in dict.fromkeys(names) if name in schema.names]


def _is_string(kind: pa.DataType) -> bool:
    return bool(
        pt.is_string(kind)
        or pt.is_large_string(kind)
        or pt.is_null(kind)
        or (pt.is_dictionary(kind) and _is_string(kind.value_type))
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind))


def _is_image(kind: pa.DataType) -> bool:
    if not pt.is_struct(kind):
        return _is_string(kind) or _is_binary(kind)
    fields = {field.name: field.type for field in kind}
    return _is_binary(fields.get("bytes", pa.string())) and _is_string(
        fields.get("path", pa.string())
    )


def _is_id(kind: pa.DataType) -> bool:
    return bool(_is_string(kind) or pt.is_integer(kind))


def _is_refs(kind: pa.DataType) -> bool:
    def is_list(k: pa.DataType) -> bool:
        return bool(pt.is_list(k) or pt.is_large_list(k) or pt.is_fixed_size_list(k))

    if pt.is_null(kind):
        return True
    return is_list(kind) and (
        pt.is_null(kind.value_type)
        or (is_list(kind.value_type) and _is_number(kind.value_type.value_type))
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_floating(kind) or pt.is_integer(kind) or pt.is_null(kind))
