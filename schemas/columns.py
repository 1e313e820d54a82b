"""Columns of a table, each with its type and a description."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa


class Column(NamedTuple):
    """A column. The description is for readers of the code: it is not written to files."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """Return the Arrow schema of columns."""
    return pa.schema(
        [pa.field(column.name, column.type, nullable=column.nullable) for column in columns]
    )
