"""Every planned row is in exactly one of masks or rejects: checked against a fresh listing, after
every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from wordmask.schemas.runs import Part, Plan, Receipt, Shard
from wordmask.schemas.settings import Frozen
from wordmask.tasks.output.catalog import newest_run, read_receipts
from wordmask.tasks.storage import Store, is_damaged_parquet, sha256

T = TypeVar("T")

SHARDS_AT_ONCE = 8
SHOWN = 20


class VerifyReport(Frozen):
    """What was checked, and each violation in words: shard, row, what is wrong."""

    shards: int
    rows: int
    violations: tuple[str, ...] = Field(())
    receipts: tuple[Receipt, ...] = Field(
        (), exclude=True, repr=False, description="of the plan's shards, those that there are"
    )

    @property
    def holds(self) -> bool:
        return not self.violations


class AccountingError(RuntimeError):
    """A row was lost or doubled. The message names the rows."""


def verify(plan: Plan, output: Store) -> VerifyReport:
    """Compare the plan with what lies in the output."""
    receipts: dict[str, Receipt] = {}

    def check(shard: Shard) -> list[str]:
        try:
            (receipt,) = read_receipts(output, [shard.shard_id])
        except FileNotFoundError:
            return [f"shard {shard.shard_id} ({shard.name}): has no receipt"]
        receipts[shard.shard_id] = receipt
        return list(_violations(shard, (receipt.masks_part, receipt.rejects_part), output))

    report = _report(check, plan.shards, plan.rows)
    return report.model_copy(
        update={
            "receipts": tuple(receipts[s.shard_id] for s in plan.shards if s.shard_id in receipts)
        }
    )


def verify_output(output: Store) -> VerifyReport:
    """Compare the newest published run with what lies in the output, to the last byte.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = newest_run(output)

    def check(named: tuple[str, Part, Part]) -> list[str]:
        shard_id, *parts = named
        try:
            (receipt,) = read_receipts(output, [shard_id])
        except FileNotFoundError:
            return [f"shard {shard_id}: has no receipt"]
        return list(_violations(receipt.shard, parts, output)) or list(
            _changes(receipt.shard, parts, output)
        )

    return _report(
        check, list(zip(run.shard_ids, run.masks_parts, run.rejects_parts, strict=True)), run.rows
    )


def _report(check: Callable[[T], list[str]], items: Sequence[T], rows: int) -> VerifyReport:
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        found = [violation for part in pool.map(check, items) for violation in part]
    return VerifyReport(shards=len(items), rows=rows, violations=tuple(found))


def _changes(shard: Shard, parts: Iterable[Part], output: Store) -> Iterator[str]:
    for part in parts:
        if sha256(output.read_bytes(part.path)) != part.sha256:
            yield f"shard {shard.shard_id} ({shard.name}): {part.path} is not what was written"


def require(report: VerifyReport) -> None:
    """Raises AccountingError unless the invariant holds."""
    if not report.holds:
        more = (
            f"\n... and {len(report.violations) - SHOWN} more"
            if len(report.violations) > SHOWN
            else ""
        )
        remedy = (
            "\nDelete receipts/SHARD.json of these shards from the output, and the same command"
            " computes them anew"
        )
        raise AccountingError(
            "rows are lost or doubled:\n" + "\n".join(report.violations[:SHOWN]) + more + remedy
        )


def _violations(shard: Shard, parts: Iterable[Part], output: Store) -> Iterator[str]:
    rows: Counter[int] = Counter()
    for part in parts:
        path = part.path
        try:
            with output.reading(path) as handle:
                rows.update(pq.read_table(handle, columns=["row"]).column(0).to_pylist())
        except FileNotFoundError:
            yield f"shard {shard.shard_id} ({shard.name}): {path} is missing"
            return
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if not is_damaged_parquet(error):
                raise
            yield f"shard {shard.shard_id} ({shard.name}): {path} cannot be read ({error})"
            return
    for row in range(shard.rows):
        if rows[row] != 1:
            yield (
                f"shard {shard.shard_id} ({shard.name}): row {shard.first_row + row} occurs"
                f" {rows[row]} times"
            )
    for row in sorted(set(rows) - set(range(shard.rows))):
        yield (
            f"shard {shard.shard_id} ({shard.name}): row {shard.first_row + row} was never planned"
        )
