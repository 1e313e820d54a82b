"""Read what a published run left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wordmask.model.eval.referring import Answer, ReferringScores, score
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Part
from wordmask.tasks.output.catalog import newest_run
from wordmask.tasks.storage import Store

TRUTH_COLUMNS = "row_id and mask struct<size, counts>"


def read_masks(output: Store, part: Part, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a part of masks, in row order."""
    yield from _rows(output, part.path, columns)


def evaluate(output: Store, truth: Store) -> ReferringScores:
    """Score the newest published run of an output against a table with `row_id` and `mask` (COCO
    RLE), joined on row_id.

    Raises:
        InputError: the truth lacks a column, or repeats a row_id.
        FileNotFoundError: nothing was published, or there is no such table.
    """
    answers: dict[str, Answer] = {}
    run = newest_run(output)
    for masks, rejects in zip(run.masks_parts, run.rejects_parts, strict=True):
        for row in _rows(output, rejects.path, ["row_id"]):
            # A duplicate's reject stands beside the mask of the first row with its id, which
            # counts.
            answers.setdefault(row["row_id"], Answer("rejected"))
        for row in _rows(output, masks.path, ["row_id", "status", "mask"]):
            answers[row["row_id"]] = Answer(row["status"], row["mask"])
    return score(_truth(truth), answers)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Rows rejected for one reason, and a few of them: row id and detail."""

    code: RejectCode
    rows: int
    examples: tuple[tuple[str, str], ...]


def rejected(output: Store, examples: int) -> list[Rejected]:
    """What the newest published run rejected, most frequent first, with up to so many examples of
    each reason.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = newest_run(output)
    shown: dict[str, list[tuple[str, str]]] = {code: [] for code in run.rejects}
    for part in run.rejects_parts if examples else ():
        if all(len(shown[code]) >= min(examples, count) for code, count in run.rejects.items()):
            break
        for row in _rows(output, part.path, ["row_id", "code", "detail"]):
            if len(shown[row["code"]]) < examples:
                shown[row["code"]].append((row["row_id"], row["detail"]))
    counts = sorted(run.rejects.items(), key=lambda item: -item[1])
    return [
        Rejected(code=RejectCode(code), rows=count, examples=tuple(shown[code]))
        for code, count in counts
    ]


def _rows(store: Store, path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    with store.parquet(path) as parquet:
        for batch in parquet.iter_batches(columns=columns):
            yield from batch.to_pylist()


def _truth(store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with store.reading("") as handle:
            schema = pq.read_schema(handle)
    except pa.ArrowInvalid as error:
        raise InputError(f"truth {store.uri}: not a readable Parquet file ({error})") from None
    if missing := {"row_id", "mask"} - set(schema.names):
        raise InputError(
            f"truth {store.uri}: no column {', '.join(sorted(missing))}; needs"
            f" {TRUTH_COLUMNS}, and has {', '.join(schema.names)}"
        )
    kind = schema.field("mask").type
    if not pa.types.is_struct(kind) or not {"size", "counts"} <= {field.name for field in kind}:
        raise InputError(f"truth {store.uri}: column 'mask' is {kind}; needs {TRUTH_COLUMNS}")
    seen: set[str] = set()
    for row in _rows(store, "", ["row_id", "mask"]):
        row_id = str(row["row_id"])
        if row_id in seen:
            raise InputError(
                f"truth {store.uri}: row_id = {row_id!r} occurs twice; each must be unique"
            )
        seen.add(row_id)
        if row["mask"] is None:
            raise InputError(
                f"truth {store.uri}: mask of row_id = {row_id!r} is null; leave the row out or"
                " give an empty mask"
            )
        yield row_id, row["mask"]
