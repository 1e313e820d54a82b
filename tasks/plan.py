"""The plan of a run: the input cut into shards, and which of them are done.

Parquet footers are enough for this. No row is read, with one exception: the row_id column, where
there is one, to find the ids that occur twice.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wordmask.schemas import method
from wordmask.schemas.losses import Unusable
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import ImageCheck, Plan, RowRange, Shard, ShardHints
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.images.changed import check_images
from wordmask.tasks.losses import find_vanished, require_few_vanished
from wordmask.tasks.output.done import DoneShards, find_base, find_done
from wordmask.tasks.output.manifests import DamagedRecordError
from wordmask.tasks.output.published import PublishedRun, open_newest_run_if_any
from wordmask.tasks.output.reuse import changed_shards, retry_hints, reuse_hints
from wordmask.tasks.storage import Store, is_damaged_parquet
from wordmask.tasks.table.footers import (
    FOOTERS_AT_ONCE,
    InputFile,
    RowGroup,
    distinct_images,
    input_files,
)
from wordmask.tasks.table.read import values_of
from wordmask.tasks.telemetry.logs import logger

Hashes = NDArray[np.int64]


def make_plan(
    settings: RunSettings, model_revision: str, output: Store, *, refuse: bool = True
) -> Plan:
    """Return the plan of a run: shards of the whole input, in a fixed order.

    Args:
        settings: the settings of the run.
        model_revision: the revision of its model.
        output: the store of its output.
        refuse: raise on a file that a run cannot use, unless the settings skip them, instead of
            leaving it out of the shards and naming it in the plan.

    Raises:
        InputError: there is no Parquet file, or one is unreadable, or its row ids are, or a column
            is missing or of the wrong type, or too many files vanished.
    """
    refuse_bad = refuse and not settings.skip_bad_files
    found, left_out = input_files(settings, output, refuse=refuse_bad)
    usable = [file for file in found if not file.problem]
    shards = _all_shards(usable, settings, model_revision)
    newest = open_newest_run_if_any(output)
    base = find_base(output, shards, newest)
    done, done_hints, check = _find_done(settings, output, shards, base)
    plan = Plan(
        shards=shards,
        done=done.all,
        published=done.published,
        files=len(found),
        input_bytes=sum(file.size for file in found),
        images=distinct_images(usable),
        unusable=tuple(_unusable(found)),
        hints=done_hints,
        image_check=check,
        left_out=left_out,
    )
    if newest is None or base is None:
        return plan
    vanished = find_vanished(newest, settings, {file.name for file in found})
    if refuse:
        require_few_vanished(vanished, settings)
    if not settings.recompute:
        earlier = _reuse_hints(settings, plan, newest, base)
        plan = plan.model_copy(update={"hints": earlier | done_hints})
    return plan.model_copy(
        update={
            "vanished": vanished,
            "base_run": base.head.run_id,
            "changed": changed_shards(newest, plan.pending),
        }
    )


def _reuse_hints(
    settings: RunSettings, plan: Plan, newest: PublishedRun, base: PublishedRun
) -> dict[str, ShardHints]:
    """Return hints of the newest run, else of the base; none where a record is damaged."""
    for run in dict.fromkeys((newest, base)):  # which may be one
        try:
            hints = reuse_hints(settings, plan.shards, run, plan.done)
        except DamagedRecordError as error:  # its rows are computed instead
            logger.warning("nothing is copied", extra={"reason": str(error)})
            continue
        if hints:
            return hints
    return {}


def _find_done(
    settings: RunSettings, output: Store, shards: Sequence[Shard], base: PublishedRun | None
) -> tuple[DoneShards, dict[str, ShardHints], ImageCheck | None]:
    """Return what need not be computed, hints for shards that were done, and the look at images.

    The hints are for rejects that are tried again, and for images that changed.
    """
    if settings.recompute:
        return DoneShards(), {}, None
    done = find_done(output, shards, base)
    changed: dict[str, ShardHints] = {}
    check = None
    if settings.check_images:
        done, changed, check = check_images(done, output, settings, base)
    done, retried = retry_hints(done, output, base, settings)
    return done, changed | retried, check


def _unusable(files: Sequence[InputFile]) -> Iterator[Unusable]:
    for file in files:
        if file.problem:
            rows = file.rows if file.readable else None
            yield Unusable(name=file.name, rows=rows, why=file.problem)


def _all_shards(
    files: Sequence[InputFile], settings: RunSettings, model_revision: str
) -> tuple[Shard, ...]:
    duplicates = duplicate_rows(files, settings)
    shards: list[Shard] = []
    for file in files:
        shards += file_shards(file, settings, model_revision, duplicates.get(file.name, ()))
    return tuple(shards)


def duplicate_rows(files: Sequence[InputFile], settings: RunSettings) -> dict[str, tuple[int, ...]]:
    """Return, by file name, the rows whose row_id stands in an earlier row of the input.

    A null id repeats nothing. Hashes of 8 bytes are compared, so that those of ten million rows fit
    in memory; the ids themselves are read again only where hashes are equal.
    """
    column = settings.segment.columns.row_id
    files = [file for file in files if file.has_row_ids]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        hashes = list(pool.map(lambda file: _id_hashes(file, column), files))
    repeated = _repeated_hashes(hashes)
    if repeated.size == 0:
        return {}
    seen: set[str] = set()
    duplicates: dict[str, tuple[int, ...]] = {}
    for file, own in zip(files, hashes, strict=True):
        suspects = np.flatnonzero(_is_among(own, repeated)).tolist()
        rows = _rows_seen_before(file, column, suspects, seen)
        if rows:
            duplicates[file.name] = rows
    return duplicates


def _id_hashes(file: InputFile, column: str) -> Hashes:
    """Return a hash of each row's id; of a null id, one that no other row has."""

    def hashes() -> Iterator[int]:
        for row, value in enumerate(_ids(file, column)):
            unique = (file.name, row) if value is None else str(value)
            yield hash(unique)

    return np.fromiter(hashes(), np.int64, file.rows)


def _repeated_hashes(hashes: Sequence[Hashes]) -> Hashes:
    """Return the hashes that occur more than once, sorted."""
    if not hashes:
        return np.empty(0, np.int64)
    every = np.concatenate(hashes)
    every.sort()
    equals_previous = every[1:] == every[:-1]
    return np.unique(every[1:][equals_previous])


def _is_among(values: Hashes, sorted_values: Hashes) -> NDArray[np.bool_]:
    """Return which of the values are among others. (np.isin would sort the many, not the few.)"""
    index = np.searchsorted(sorted_values, values).clip(max=sorted_values.size - 1)
    found: NDArray[np.bool_] = sorted_values[index] == values
    return found


def _rows_seen_before(
    file: InputFile, column: str, suspects: Sequence[int], seen: set[str]
) -> tuple[int, ...]:
    """Return the suspected rows whose id was seen, and add the ids of all of them to `seen`."""
    if not suspects:
        return ()
    suspected = set(suspects)
    rows = []
    for row, value in enumerate(_ids(file, column)):
        if row not in suspected or value is None:
            continue
        if str(value) in seen:
            rows.append(row)
        seen.add(str(value))
    return tuple(rows)


def _ids(file: InputFile, column: str) -> Iterator[Any]:
    try:
        with Store.open(file.uri).parquet("") as parquet:
            for batch in parquet.iter_batches(columns=[column], use_threads=False):
                yield from values_of(batch.column(0))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if not is_damaged_parquet(error):
            raise
        problem = (
            f"input {file.name}: column {column!r} cannot be read ({error}). Export it again, or"
            " move it out of the input"
        )
        raise InputError(problem) from error


def file_shards(
    file: InputFile, settings: RunSettings, model_revision: str, duplicates: Sequence[int]
) -> Iterator[Shard]:
    """Yield the shards of a file.

    Args:
        file: a file of the input.
        settings: the settings of the run.
        model_revision: the revision of its model.
        duplicates: rows of the file whose id occurred before, ascending.
    """
    settings_hash = settings.segment.settings_hash
    first_row = 0
    for ranges in cut(file.row_groups, settings.shard_rows, settings.shard_bytes):
        rows = sum(part.stop - part.start for part in ranges)
        start = bisect_left(duplicates, first_row)
        stop = bisect_left(duplicates, first_row + rows)
        own_duplicates = tuple(row - first_row for row in duplicates[start:stop])
        identity = [
            file.name,
            file.fingerprint,
            first_row,
            ranges,
            own_duplicates,
            model_revision,
            settings_hash,
            method.METHOD_VERSION,
            file.image_folder,
        ]
        yield Shard(
            shard_id=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
            file=file.uri,
            name=file.name,
            fingerprint=file.fingerprint,
            ranges=ranges,
            first_row=first_row,
            duplicates=own_duplicates,
            model_revision=model_revision,
            settings_hash=settings_hash,
            partition=_carried_partition(file, settings.segment),
            method_version=method.METHOD_VERSION,
        )
        first_row += rows


def _carried_partition(file: InputFile, settings: SegmentSettings) -> dict[str, str | None]:
    """Return the columns of a file's partition that are carried. The file's name implies them."""
    return {key: file.partition[key] for key in settings.carry if key in file.partition}


def cut(
    row_groups: Sequence[RowGroup], max_rows: int, max_bytes: int
) -> Iterator[tuple[RowRange, ...]]:
    """Yield the row ranges of each shard, in file order.

    Small row groups are joined, large ones cut. A footer gives the bytes of a row group, not of a
    row: each row counts as an equal share.

    Args:
        row_groups: the row groups of a file.
        max_rows: the most rows of a shard.
        max_bytes: the most bytes of a shard, unless it is a single row.
    """
    ranges: list[RowRange] = []
    rows_left = max_rows
    bytes_left = max_bytes
    for index, group in enumerate(row_groups):
        start = 0
        while start < group.rows:
            taken = _rows_that_fit(group, start, rows_left, bytes_left, at_least=0 if ranges else 1)
            if taken:
                ranges.append(RowRange(index, start, start + taken))
                start += taken
                rows_left -= taken
                bytes_left -= taken * group.bytes // group.rows
            if start < group.rows or rows_left == 0:
                yield tuple(ranges)
                ranges = []
                rows_left = max_rows
                bytes_left = max_bytes
    if ranges:
        yield tuple(ranges)


def _rows_that_fit(
    group: RowGroup, start: int, rows_left: int, bytes_left: int, *, at_least: int
) -> int:
    """Return how many rows of a row group, from `start` on, fit in the rest of a shard."""
    fit = rows_left
    if bytes_left < 0:  # a single row may take more than a shard's bytes
        fit = 0
    elif group.bytes:
        fit = min(fit, bytes_left * group.rows // group.bytes)
    return min(group.rows - start, max(fit, at_least))
