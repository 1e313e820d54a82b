"""Partitions of Hive: folders `KEY=VALUE` whose keys are columns of the files below.

Values are text, whatever they look like: so a column has one type however many files there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa

from wordmask.schemas.queries import InputError

NULL = "__HIVE_DEFAULT_PARTITION__"
VALUES_SHOWN = 5

Partition = Mapping[str, str | None]


def partition_of(name: str) -> dict[str, str | None]:
    """Return the keys and values in the folders of a name, which is relative to the input."""
    found: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, separator, value = folder.partition("=")
        if key and separator:
            found[unquote(key)] = value_of(unquote(value))
    return found


def value_of(text: str) -> str | None:
    """Return the value of a partition, which is null under its usual name."""
    if text == NULL:
        return None
    return text


def with_partition(schema: pa.Schema, partition: Partition) -> pa.Schema:
    """Return a file's schema with its partition's columns; they count, not the file's own."""
    own = [field for field in schema if field.name not in partition]
    return pa.schema([*own, *(pa.field(key, pa.string()) for key in partition)])


def chosen(partitions: Mapping[str, Partition], where: Sequence[str]) -> set[str]:
    """Return the files whose partition is asked for.

    Args:
        partitions: those of all files, by path.
        where: conditions KEY=VALUE. Of one key any may hold; of several keys all must.

    Raises:
        InputError: there is no such key, or no file is left.
    """
    if not where:
        return set(partitions)
    wanted = _values_by_key(where)
    _require_keys(wanted, partitions)
    found = {path for path, partition in partitions.items() if _fits(partition, wanted)}
    if not found:
        raise InputError(
            f"--where {' '.join(where)}: no file is in there; {_told(partitions, wanted)}"
        )
    return found


def may_be_chosen(name: str, where: Sequence[str]) -> bool:
    """Return whether a file, or one below a folder, may be asked for, as far as its name says."""
    partition = partition_of(f"{name}/")
    wanted = _values_by_key(where)
    return _fits(partition, {key: wanted[key] for key in wanted if key in partition})


def _values_by_key(where: Sequence[str]) -> dict[str, set[str | None]]:
    wanted: dict[str, set[str | None]] = {}
    for condition in where:
        key, _, value = condition.partition("=")
        wanted.setdefault(key, set()).add(value_of(value))
    return wanted


def _fits(partition: Partition, wanted: Mapping[str, set[str | None]]) -> bool:
    return all(key in partition and partition[key] in values for key, values in wanted.items())


def _require_keys(wanted: Iterable[str], partitions: Mapping[str, Partition]) -> None:
    keys = list(dict.fromkeys(key for partition in partitions.values() for key in partition))
    for key in wanted:
        if key not in keys:
            there = f"has {', '.join(keys)}"
            if not keys:
                there = "has no folders KEY=VALUE"
            raise InputError(f"--where {key}=...: no partition key {key!r}; the input {there}")


def _told(partitions: Mapping[str, Partition], keys: Iterable[str]) -> str:
    """Return the first values of keys, in words."""
    parts = []
    for key in keys:
        values = {partition[key] or NULL for partition in partitions.values() if key in partition}
        more = ""
        if len(values) > VALUES_SHOWN:
            more = ", ..."
        parts.append(f"{key} is {', '.join(sorted(values)[:VALUES_SHOWN])}{more}")
    return "; ".join(parts)
