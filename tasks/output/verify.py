"""Verification that every planned row is in exactly one of masks or rejects.

It is done against a fresh listing, after every run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from wordmask.schemas.losses import Gap, RowSpan, uncovered
from wordmask.schemas.runs import Part, Plan, Shard, ShardRecord
from wordmask.schemas.settings import Frozen
from wordmask.tasks.output.catalog import latest_receipts, read_receipt, read_run
from wordmask.tasks.output.done import Listing, by_file
from wordmask.tasks.output.manifests import (
    DamagedRecordError,
    FileRecords,
    add_counts,
    entry_of,
)
from wordmask.tasks.output.published import PublishedRun, open_newest_run, open_run
from wordmask.tasks.storage import Store, is_damaged_parquet, sha256

T = TypeVar("T")
R = TypeVar("R")

SHARDS_AT_ONCE = 8
FILES_AT_ONCE = 64  # input files whose records are in memory, when a whole run is verified
SHOWN = 20  # violations in an error


class VerifyReport(Frozen):
    """The extent of a verification, and each violation in words: shard, row, what is wrong.

    `rows_in_gaps`: rows of the input that the run names as missing.
    """

    shards: int
    rows: int
    rows_in_gaps: int = 0
    violations: tuple[str, ...] = Field(())
    files: tuple[FileRecords, ...] = Field(
        (), exclude=True, repr=False, description="what was verified, as it is to be published"
    )

    @property
    def holds(self) -> bool:
        """Whether there is no violation."""
        return not self.violations


class AccountingError(RuntimeError):
    """A row was lost or doubled. The message names the rows."""


class _CheckedShard(NamedTuple):
    """The record of a shard, if there is one, and what is wrong."""

    record: ShardRecord | None
    violations: list[str]


class _CheckedFile(NamedTuple):
    """The records of an input file, if there are any, and what is wrong."""

    records: FileRecords | None
    violations: list[str]


def verify(plan: Plan, output: Store, *, is_whole: bool = True) -> VerifyReport:
    """Compare a plan with the output.

    Shards that were done since the newest published run are checked row by row, the others by the
    listing. The report has the very records that were checked, whatever receipts say afterwards.

    Args:
        plan: the plan.
        output: the output.
        is_whole: the plan has each row of its files, in a shard or a named gap.
    """
    base = None
    if plan.published:
        base = open_run(output, read_run(output, plan.base_run))
    listing = Listing(output)
    unpublished = [shard for shard in plan.shards if shard.shard_id not in plan.published]
    done_since = _check_receipts(unpublished, output)

    def check(file: tuple[str, list[Shard]]) -> _CheckedFile:
        return _check_file(file[1], done_since, base, listing)

    checked = _in_threads(check, list(by_file(plan.shards)))
    violations = _joined(file.violations for file in checked)
    if is_whole:
        violations += tuple(_cover_violations(plan.shards, plan.gaps))
    return VerifyReport(
        shards=len(plan.shards),
        rows=plan.rows,
        rows_in_gaps=sum(gap.rows for gap in plan.gaps),
        violations=violations,
        files=tuple(file.records for file in checked if file.records is not None),
    )


def _cover_violations(shards: Iterable[Shard], gaps: Iterable[Gap]) -> Iterator[str]:
    """Yield the rows of each file that are in neither a shard nor a gap, or in several."""
    spans: dict[str, list[RowSpan]] = defaultdict(list)
    for shard in shards:
        spans[shard.name].append(RowSpan(shard.first_row, shard.rows))
    for gap in gaps:
        spans[gap.name].append(RowSpan(gap.first_row, gap.rows))
    for name, of_file in spans.items():
        yield from (f"{name}: {problem}" for problem in uncovered(of_file))


def _check_receipts(shards: Sequence[Shard], output: Store) -> dict[str, _CheckedShard]:
    """Check shards that have receipts, row by row."""
    fences = latest_receipts(output)

    def check(shard: Shard) -> _CheckedShard:
        receipt = None
        if shard.shard_id in fences:
            receipt = read_receipt(output, shard.shard_id, fences[shard.shard_id])
        if receipt is None:
            return _CheckedShard(None, [f"{_describe(shard)}: has no receipt"])
        return _CheckedShard(receipt, list(_row_violations(shard, receipt.parts, output)))

    checked = _in_threads(check, shards)
    return {shard.shard_id: each for shard, each in zip(shards, checked, strict=True)}


def _check_file(
    shards: Sequence[Shard],
    done_since: Mapping[str, _CheckedShard],
    base: PublishedRun | None,
    listing: Listing,
) -> _CheckedFile:
    """Return the records of a file's shards, and what is wrong with them.

    Args:
        shards: all shards of the file.
        done_since: those that were done since the published run.
        base: the published run that has the others.
        listing: of the output.
    """
    ids = [shard.shard_id for shard in shards]
    name = shards[0].name
    whole = None  # the file's entry, if the published run has all of its shards and no other
    if base is not None and done_since.keys().isdisjoint(ids):
        entry = base.entries[name]
        if listing.has_file(entry, ids):
            return _CheckedFile(FileRecords(entry=entry), [])
        if listing.has_manifest(entry) and entry.shards == len(ids):
            whole = entry
    earlier = {}
    if base is not None and not done_since.keys() >= set(ids):
        earlier = {record.shard.shard_id: record for record in base.records_of(name)}
    checked = [
        done_since.get(shard.shard_id) or _check_published(shard, earlier, listing)
        for shard in shards
    ]
    violations = list(_joined(each.violations for each in checked))
    records = tuple(each.record for each in checked if each.record is not None)
    if not records:
        return _CheckedFile(None, violations)
    if whole is None:
        return _CheckedFile(FileRecords(entry=entry_of(records), records=records), violations)
    return _CheckedFile(FileRecords(entry=whole), violations)


def _check_published(
    shard: Shard, earlier: Mapping[str, ShardRecord], listing: Listing
) -> _CheckedShard:
    """Check a shard of the published run by the listing."""
    record = earlier.get(shard.shard_id)
    if record is None:
        return _CheckedShard(None, [f"{_describe(shard)}: is not in the published run"])
    problem = listing.problem_of(record)
    if problem:
        return _CheckedShard(record, [f"{_describe(shard)}: {problem}"])
    return _CheckedShard(record, [])


def verify_output(output: Store) -> VerifyReport:
    """Compare the newest published run with its records and parts, to the last byte.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = open_newest_run(output)
    violations: list[str] = []
    try:
        names = list(run.entries)
        violations += _head_violations(run)
    except DamagedRecordError as error:
        names = []
        violations.append(str(error))

    def check(record: ShardRecord) -> list[str]:
        found = list(_row_violations(record.shard, record.parts, output))
        return found or list(_changed_parts(record.shard, record.parts, output))

    gaps = run.head.gaps
    violations += _cover_violations((), (gap for gap in gaps if gap.name not in names))
    for start in range(0, len(names), FILES_AT_ONCE):
        files = _in_threads(
            lambda name: _read_file(run, name), names[start : start + FILES_AT_ONCE]
        )
        records = [record for records, _ in files for record in records]
        violations += _joined(problems for _, problems in files)
        violations += _joined(_in_threads(check, records))
        read = {record.shard.name for record in records}
        of_files = [gap for gap in gaps if gap.name in read]
        violations += _cover_violations((record.shard for record in records), of_files)
    return VerifyReport(
        shards=run.head.shards,
        rows=run.head.rows,
        rows_in_gaps=run.head.rows_in_gaps,
        violations=tuple(violations),
    )


def _head_violations(run: PublishedRun) -> Iterator[str]:
    """Yield the counts of a run that are not the sums of its input files."""
    entries = run.entries.values()
    sums = {
        "shards": sum(entry.shards for entry in entries),
        "rows": sum(entry.rows for entry in entries),
        "masks": sum(entry.masks for entry in entries),
        "absent": sum(entry.absent for entry in entries),
        "rejects": add_counts(entry.rejects for entry in entries),
    }
    for shard_id in run.lost:
        yield f"shard {shard_id}: has no receipt"
    in_gaps = sum(gap.rows for gap in run.head.gaps)
    if run.head.rows_in_gaps != in_gaps:
        yield f"run {run.head.run_id}: rows_in_gaps is not {in_gaps}, as its gaps have"
    for name, found in sums.items():
        told = getattr(run.head, name)
        if told != found and not run.lost:
            yield f"run {run.head.run_id}: {name} is {told}, but its files have {found}"


def _read_file(run: PublishedRun, name: str) -> tuple[list[ShardRecord], list[str]]:
    """Return the records of an input file, and what is wrong with them themselves."""
    entry = run.entries[name]
    try:
        records = run.records_of(name)
    except DamagedRecordError as error:
        return [], [str(error)]
    written = {"manifest": entry.manifest, "manifest_bytes": entry.manifest_bytes}
    if entry_of(records).model_copy(update=written) != entry:
        return records, [f"{name}: the sums in the index are not those of {entry.manifest}"]
    return records, []


def require(report: VerifyReport) -> None:
    """Check that a verification found no violation.

    Raises:
        AccountingError: it found some. The message shows the first ones.
    """
    if report.holds:
        return
    lines = ["rows are lost or doubled:", *report.violations[:SHOWN]]
    hidden = len(report.violations) - SHOWN
    if hidden > 0:
        lines.append(f"... and {hidden} more")
    lines.append(
        "Delete the receipts of these shards from the output (receipts/SHARD*.json), and the same"
        " command computes them anew"
    )
    raise AccountingError("\n".join(lines))


def _in_threads(check: Callable[[T], R], items: Sequence[T]) -> list[R]:
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        return list(pool.map(check, items))


def _joined(lists: Iterable[list[str]]) -> tuple[str, ...]:
    return tuple(violation for violations in lists for violation in violations)


def _changed_parts(shard: Shard, parts: Iterable[Part], output: Store) -> Iterator[str]:
    for part in parts:
        if sha256(output.read_bytes(part.path)) != part.sha256:
            yield f"{_describe(shard)}: {part.path} is not what was written"


def _row_violations(shard: Shard, parts: Iterable[Part], output: Store) -> Iterator[str]:
    """Yield the rows that do not occur exactly once, or the first part that cannot be read."""
    occurrences: Counter[int] = Counter()
    for part in parts:
        try:
            with output.reading(part.path) as handle:
                table = pq.read_table(handle, columns=["row"])
        except FileNotFoundError:
            yield f"{_describe(shard)}: {part.path} is missing"
            return
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if not is_damaged_parquet(error):
                raise
            yield f"{_describe(shard)}: {part.path} cannot be read ({error})"
            return
        occurrences.update(table.column(0).to_pylist())
    planned = range(shard.rows)
    for row in planned:
        if occurrences[row] != 1:
            at = shard.first_row + row
            yield f"{_describe(shard)}: row {at} occurs {occurrences[row]} times"
    for row in sorted(set(occurrences) - set(planned)):
        yield f"{_describe(shard)}: row {shard.first_row + row} was never planned"


def _describe(shard: Shard) -> str:
    return f"shard {shard.shard_id} ({shard.name})"
