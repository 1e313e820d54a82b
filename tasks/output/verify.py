"""Verification that every planned row is in exactly one of masks or rejects.

It is done against a fresh listing, after every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from wordmask.schemas.runs import Part, Plan, Receipt, Shard
from wordmask.schemas.settings import Frozen
from wordmask.tasks.output.catalog import newest_run, read_receipt
from wordmask.tasks.storage import Store, is_damaged_parquet, sha256

T = TypeVar("T")
R = TypeVar("R")

SHARDS_AT_ONCE = 8
SHOWN = 20  # violations in an error


class VerifyReport(Frozen):
    """The extent of a verification, and each violation in words: shard, row, what is wrong."""

    shards: int
    rows: int
    violations: tuple[str, ...] = Field(())
    receipts: tuple[Receipt, ...] = Field(
        (), exclude=True, repr=False, description="of the plan's shards, those that there are"
    )

    @property
    def holds(self) -> bool:
        """Whether there is no violation."""
        return not self.violations


class AccountingError(RuntimeError):
    """A row was lost or doubled. The message names the rows."""


class _NamedParts(NamedTuple):
    """The parts of a shard that a published run names."""

    shard_id: str
    parts: tuple[Part, Part]


def verify(plan: Plan, output: Store) -> VerifyReport:
    """Compare a plan with the parts in the output."""

    def check(shard: Shard) -> tuple[Receipt | None, list[str]]:
        try:
            receipt = read_receipt(output, shard.shard_id)
        except FileNotFoundError:
            return None, [f"shard {shard.shard_id} ({shard.name}): has no receipt"]
        parts = (receipt.masks_part, receipt.rejects_part)
        return receipt, list(_row_violations(shard, parts, output))

    checked = _in_threads(check, plan.shards)
    return VerifyReport(
        shards=len(plan.shards),
        rows=plan.rows,
        violations=_joined(violations for _, violations in checked),
        receipts=tuple(receipt for receipt, _ in checked if receipt is not None),
    )


def verify_output(output: Store) -> VerifyReport:
    """Compare the newest published run with the parts in the output, to the last byte.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = newest_run(output)

    def check(named: _NamedParts) -> list[str]:
        try:
            receipt = read_receipt(output, named.shard_id)
        except FileNotFoundError:
            return [f"shard {named.shard_id}: has no receipt"]
        violations = list(_row_violations(receipt.shard, named.parts, output))
        return violations or list(_changed_parts(receipt.shard, named.parts, output))

    shards = zip(run.shard_ids, run.masks_parts, run.rejects_parts, strict=True)
    named = [_NamedParts(shard_id, (masks, rejects)) for shard_id, masks, rejects in shards]
    return VerifyReport(
        shards=len(named), rows=run.rows, violations=_joined(_in_threads(check, named))
    )


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
        "Delete receipts/SHARD.json of these shards from the output, and the same command"
        " computes them anew"
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
