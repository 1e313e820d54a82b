"""What readers get from a published run: masks, scores against a truth, reasons of rejects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from wordmask.model.eval.referring import Answer, ReferringScores, score
from wordmask.schemas.masks import MASKS
from wordmask.schemas.queries import InputError
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Part
from wordmask.tasks.output.published import PublishedRun, open_newest_run
from wordmask.tasks.storage import Store

TRUTH_COLUMNS = "row_id and mask struct<size, counts>"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Rows that were rejected for one reason, and a few of them: row id and detail."""

    code: RejectCode
    rows: int
    examples: tuple[tuple[str, str], ...]


def open_masks(output: str) -> ds.Dataset:
    """Return the masks of the newest published run as an Arrow dataset.

    It stays that run's, also when a later one is published.

    Args:
        output: the folder or URI that the run was given.

    Raises:
        FileNotFoundError: nothing was published.
    """
    store = Store.open(output)
    paths = [store.full(masks.path) for masks, _ in open_newest_run(store).parts()]
    carried: list[pa.Field] = []
    if paths:
        found = ds.dataset(paths[:1], filesystem=store.fs, format="parquet").schema
        carried = [field for field in found if field.name not in MASKS.names]
    # Named, as a part of an older version may lack a column.
    schema = pa.schema([*MASKS, *carried])
    return ds.dataset(paths, schema=schema, filesystem=store.fs, format="parquet")


def read_masks(output: Store, part: Part, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part of masks, in row order."""
    yield from _rows(output, part.path, columns)


def evaluate(output: Store, truth: Store) -> ReferringScores:
    """Return the scores of the newest published run against a truth, joined on row_id.

    Args:
        output: the output of the run.
        truth: a Parquet file with `row_id` and `mask` (COCO RLE).

    Raises:
        InputError: the truth lacks a column, or repeats a row_id.
        FileNotFoundError: nothing was published, or there is no such table.
    """
    answers = _answers(output, open_newest_run(output))
    return score(_truth_masks(truth), answers)


def _answers(output: Store, run: PublishedRun) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    for masks, rejects in run.parts():
        for row in _rows(output, rejects.path, ["row_id"]):
            # A duplicate's reject stands beside the mask of the first row with its id, which
            # counts.
            answers.setdefault(row["row_id"], Answer("rejected"))
        for row in _rows(output, masks.path, ["row_id", "status", "mask"]):
            answers[row["row_id"]] = Answer(row["status"], row["mask"])
    return answers


def _truth_masks(truth: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield row id and mask of each row of the truth."""
    _check_truth_columns(truth)
    seen: set[str] = set()
    for row in _rows(truth, "", ["row_id", "mask"]):
        row_id = str(row["row_id"])
        if row_id in seen:
            raise InputError(
                f"truth {truth.uri}: row_id = {row_id!r} occurs twice; each must be unique"
            )
        seen.add(row_id)
        if row["mask"] is None:
            raise InputError(
                f"truth {truth.uri}: mask of row_id = {row_id!r} is null; leave the row out or give"
                " an empty mask"
            )
        yield row_id, row["mask"]


def _check_truth_columns(truth: Store) -> None:
    try:
        with truth.reading("") as handle:
            schema = pq.read_schema(handle)
    except pa.ArrowInvalid as error:
        raise InputError(f"truth {truth.uri}: not a readable Parquet file ({error})") from None
    missing = {"row_id", "mask"} - set(schema.names)
    if missing:
        raise InputError(
            f"truth {truth.uri}: no column {', '.join(sorted(missing))}; needs {TRUTH_COLUMNS}, and"
            f" has {', '.join(schema.names)}"
        )
    mask_type = schema.field("mask").type
    if not _is_rle(mask_type):
        raise InputError(f"truth {truth.uri}: column 'mask' is {mask_type}; needs {TRUTH_COLUMNS}")


def _is_rle(arrow_type: pa.DataType) -> bool:
    if not pa.types.is_struct(arrow_type):
        return False
    names = {field.name for field in arrow_type}
    return {"size", "counts"} <= names


def rejected(output: Store, examples: int) -> list[Rejected]:
    """Return the reasons of the newest published run's rejects, most frequent first.

    Args:
        output: the output of the run.
        examples: how many rows to give of each reason, at most.

    Raises:
        FileNotFoundError: nothing was published.
    """
    run = open_newest_run(output)
    shown = _reject_examples(output, run, examples)
    by_count = sorted(run.head.rejects.items(), key=lambda item: -item[1])
    return [
        Rejected(code=RejectCode(code), rows=rows, examples=tuple(shown[code]))
        for code, rows in by_count
    ]


def _reject_examples(
    output: Store, run: PublishedRun, examples: int
) -> dict[str, list[tuple[str, str]]]:
    """Return the first rows of each code. Parts are read until there are enough of all."""
    shown: dict[str, list[tuple[str, str]]] = {code: [] for code in run.head.rejects}
    missing = sum(min(examples, count) for count in run.head.rejects.values())
    for _, part in run.parts():
        if missing == 0:
            break
        for row in _rows(output, part.path, ["row_id", "code", "detail"]):
            found = shown[row["code"]]
            if len(found) < examples:
                found.append((row["row_id"], row["detail"]))
                missing -= 1
    return shown


def _rows(store: Store, path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    with store.parquet(path) as parquet:
        for batch in parquet.iter_batches(columns=columns):
            yield from batch.to_pylist()
