"""COCO instances, with or without referring expressions, as an input table with ground truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.tasks.table.truth import write_table

Record = dict[str, Any]
POLYGON_NUMBERS = 6  # x and y of three corners: the least that encloses something
MAX_COORDINATE = 100_000  # pixels


@dataclass(frozen=True)
class Imported:
    """Rows written, and those of them whose image file is not there (the run rejects them)."""

    rows: int
    missing_images: int


@dataclass(frozen=True)
class Instances:
    """A COCO instances file by id. `path` is for messages."""

    path: Path
    images: dict[Any, Record]
    annotations: dict[Any, Record]
    categories: dict[Any, Record]


@dataclass(frozen=True)
class Question:
    """What one row asks: the words that single out an annotation. `where` it stands is for
    messages.
    """

    row_id: str
    annotation: Record
    query: str
    where: str


def import_coco(
    instances: Path,
    images: Path,
    dest: str,
    *,
    expressions: Path | None = None,
    tell: Callable[[int], object] | None = None,
) -> Imported:
    """Write one row per expression (row_id = ref_id), or without expressions one per instance,
    asking for its category (row_id = annotation id). Ordered by image, so that an image's queries
    meet in one batch.

    An image file that is not there leaves its rows with a path and null bytes, which a run rejects
    one by one. `tell`: as in `write_table`.

    Raises:
        InputError: a file is not what it should be; the message names the record.
    """
    data = _load(instances)
    asked = _of_categories(data) if expressions is None else _of_expressions(expressions, data)
    questions = sorted(_distinct(asked), key=lambda question: _image_of(question, data)["id"])
    missing: set[Any] = set()
    rows = write_table(dest, _rows(questions, data, images, missing), tell)
    return Imported(
        rows=rows,
        missing_images=sum(question.annotation["image_id"] in missing for question in questions),
    )


def _load(path: Path) -> Instances:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}). Give a COCO instances file") from None
    tables = {
        "images": ("file_name", "height", "width"),
        "annotations": ("image_id", "segmentation"),
        "categories": ("name",),
    }
    if not isinstance(data, dict) or (
        missing := [name for name in tables if not isinstance(data.get(name), list)]
    ):
        raise InputError(
            f"{path}: no list {', '.join(missing) if isinstance(data, dict) else 'of images'}. Give"
            " a COCO instances file"
        )
    by_id = {
        name: {
            record["id"]: record
            for record in _whole(data[name], ("id", *fields), f"{path}, {name}")
        }
        for name, fields in tables.items()
    }
    for name, records in by_id.items():
        if len(records) < len(data[name]):
            raise InputError(
                f"{path}, {name}: {len(data[name]) - len(records)} ids occur twice; give each"
                " record its own"
            )
    return Instances(path=path, **by_id)


def _whole(records: list[Any], fields: Iterable[str], where: str) -> Iterator[Record]:
    for index, record in enumerate(records):
        if not isinstance(record, dict) or (
            absent := [field for field in fields if field not in record]
        ):
            lacks = ", ".join(absent) if isinstance(record, dict) else "everything: it is no object"
            raise InputError(f"{where}[{index}]: lacks {lacks}")
        yield record


def _of_categories(data: Instances) -> Iterator[Question]:
    for key, annotation in data.annotations.items():
        where = f"{data.path}, annotation {key}"
        category = _look_up(annotation.get("category_id"), data.categories, "category_id", where)
        yield Question(row_id=str(key), annotation=annotation, query=category["name"], where=where)


def _of_expressions(path: Path, data: Instances) -> Iterator[Question]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        (ref,) = _whole([record], ("ref_id", "image_id", "annotation_id", "expression"), where)
        annotation = _look_up(ref["annotation_id"], data.annotations, "annotation_id", where)
        if ref["image_id"] != annotation["image_id"]:
            raise InputError(
                f"{where}: image_id = {ref['image_id']!r}, but its annotation lies in image"
                f" {annotation['image_id']!r}"
            )
        if not isinstance(ref["expression"], str):
            raise InputError(f"{where}: expression = {ref['expression']!r}: must be a string")
        yield Question(
            row_id=str(ref["ref_id"]), annotation=annotation, query=ref["expression"], where=where
        )


def _image_of(question: Question, data: Instances) -> Record:
    return _look_up(question.annotation["image_id"], data.images, "image_id", question.where)


def _look_up(key: Any, table: dict[Any, Record], field: str, where: str) -> Record:
    try:
        return table[key]
    except (KeyError, TypeError):
        raise InputError(
            f"{where}: {field} = {key!r}: the instances file has none of that id"
        ) from None


def _distinct(questions: Iterable[Question]) -> Iterator[Question]:
    seen: dict[str, str] = {}
    for question in questions:
        if question.row_id in seen:
            raise InputError(
                f"{question.where}: ref_id = {question.row_id!r} stands at {seen[question.row_id]}"
                " too. It becomes the row_id, so give each expression its own"
            )
        seen[question.row_id] = question.where
        yield question


def _rows(
    questions: Iterable[Question], data: Instances, folder: Path, missing: set[Any]
) -> Iterator[Record]:
    """`missing` gets the ids of the images whose file is not there."""
    read: tuple[Any, bytes | None] = (None, None)
    for question in questions:
        image = _image_of(question, data)
        if read[0] != image["id"]:
            path = folder / image["file_name"]
            read = (image["id"], path.read_bytes() if path.is_file() else None)
        if read[1] is None:
            missing.add(image["id"])
        try:
            truth = true_rle(question.annotation["segmentation"], image["height"], image["width"])
        except ValueError as error:
            raise InputError(
                f"{data.path}, annotation {question.annotation['id']}: {error}"
            ) from None
        yield {
            "row_id": question.row_id,
            "image": {"bytes": read[1], "path": image["file_name"]},
            "query": question.query,
            "mask": truth,
        }


def true_rle(segmentation: Any, height: int, width: int) -> rle.Rle:
    """COCO's polygons (pixels), or its uncompressed or compressed runs (crowds), as one compressed
    RLE with string counts.

    Raises:
        ValueError: it is none of these, a polygon has no area to speak of, or the runs do not fit
        height x width.
    """
    if isinstance(segmentation, list):
        merged = coco.merge(coco.frPyObjects(_polygons(segmentation), height, width))
    elif (
        not isinstance(segmentation, dict)
        or "counts" not in segmentation
        or list(segmentation.get("size", ())) != [height, width]
    ):
        raise ValueError(
            f"segmentation: must be a list of polygons, or counts with size [{height}, {width}] as"
            " the image has"
        )
    elif isinstance(segmentation["counts"], list):
        merged = coco.frPyObjects(segmentation, height, width)
    else:
        merged = segmentation
    counts = merged["counts"]
    found = rle.Rle(
        size=[height, width], counts=counts.decode("ascii") if isinstance(counts, bytes) else counts
    )
    rle.validate(found)
    return found


def _polygons(segmentation: list[Any]) -> list[list[float]]:
    if not segmentation:
        raise ValueError("segmentation: is empty; leave the annotation out, or give its outline")
    for index, polygon in enumerate(segmentation):
        if not isinstance(polygon, list) or len(polygon) < POLYGON_NUMBERS or len(polygon) % 2:
            count = len(polygon) if isinstance(polygon, list) else 0
            raise ValueError(
                f"segmentation[{index}]: has {count} numbers; a polygon needs x and y of three"
                " corners or more"
            )
        # pycocotools reserves memory by the polygon's own length, and crashes on what no image has.
        if not all(
            isinstance(value, (int, float)) and abs(value) <= MAX_COORDINATE for value in polygon
        ):
            raise ValueError(
                f"segmentation[{index}]: a coordinate is no number, or outside"
                f" -{MAX_COORDINATE}..{MAX_COORDINATE} pixels"
            )
    return segmentation
