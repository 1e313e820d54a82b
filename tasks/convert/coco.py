"""COCO instances, with or without referring expressions, as an input table with ground truth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.uris import ImageError, resolve
from wordmask.tasks.table.truth import OnRows, ignore_rows, write_table

Record = dict[str, Any]
POLYGON_NUMBERS = 6  # x and y of three corners: the least that encloses something
MAX_COORDINATE = 100_000  # pixels
INSTANCE_LISTS = {
    "images": ("file_name", "height", "width"),
    "annotations": ("image_id", "segmentation"),
    "categories": ("name",),
}  # the lists of an instances file, and the fields of their records besides id
REFERENCE_FIELDS = ("ref_id", "image_id", "annotation_id", "expression")


@dataclass(frozen=True)
class Imported:
    """Rows written, and those of them whose image file is not there (the run rejects them)."""

    rows: int
    missing_images: int


@dataclass(frozen=True)
class Instances:
    """The records of a COCO instances file by id. `path` is for messages."""

    path: Path
    images: dict[Any, Record]
    annotations: dict[Any, Record]
    categories: dict[Any, Record]


@dataclass(frozen=True)
class ReferringQuery:
    """The words that single out an annotation. `where` they stand is for messages."""

    row_id: str
    annotation: Record
    text: str
    where: str


def import_coco(
    instances: Path,
    images: Path,
    dest: str,
    *,
    expressions: Path | None = None,
    allow_roots: Sequence[str] = (),
    on_rows: OnRows = ignore_rows,
) -> Imported:
    """Write COCO instances as an input table, ordered by image.

    There is one row for each expression (row_id = ref_id), or without expressions one for each
    instance, whose query is its category (row_id = annotation id). As rows are ordered by image,
    the queries of an image come together in one batch. An image file that is not there leaves its
    rows with a path and null bytes; a run rejects them.

    Args:
        instances: COCO instances file.
        images: folder of the image files.
        dest: path or URI of the table.
        expressions: JSON lines of referring expressions.
        allow_roots: folders below which image files may lie, besides `images`.
        on_rows: as in `write_table`.

    Raises:
        InputError: a file is not what it should be, or an image file's name leads out of the
            roots; the message names the record.
    """
    data = _load(instances)
    queries = _category_queries(data)
    if expressions is not None:
        queries = _expression_queries(expressions, data)
    ordered = sorted(_distinct(queries), key=lambda query: _image_of(query, data)["id"])
    files = _image_files(ordered, data, images, allow_roots)
    rows = write_table(dest, _rows(ordered, data, files), on_rows)
    without_image = sum(query.annotation["image_id"] not in files for query in ordered)
    return Imported(rows=rows, missing_images=without_image)


def _load(path: Path) -> Instances:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}). Give a COCO instances file") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: no list of images. Give a COCO instances file")
    missing = [name for name in INSTANCE_LISTS if not isinstance(data.get(name), list)]
    if missing:
        raise InputError(f"{path}: no list {', '.join(missing)}. Give a COCO instances file")
    by_id = {name: _by_id(data[name], name, path) for name in INSTANCE_LISTS}
    return Instances(path=path, **by_id)


def _by_id(records: list[Any], name: str, path: Path) -> dict[Any, Record]:
    where = f"{path}, {name}"
    by_id = {}
    for index, record in enumerate(records):
        checked = _checked(record, ("id", *INSTANCE_LISTS[name]), f"{where}[{index}]")
        by_id[checked["id"]] = checked
    repeated = len(records) - len(by_id)
    if repeated:
        raise InputError(f"{where}: {repeated} ids occur twice; give each record its own")
    return by_id


def _checked(record: Any, fields: Sequence[str], where: str) -> Record:
    """Return a record that is an object with these fields."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: lacks everything: it is no object")
    absent = [field for field in fields if field not in record]
    if absent:
        raise InputError(f"{where}: lacks {', '.join(absent)}")
    return record


def _category_queries(data: Instances) -> Iterator[ReferringQuery]:
    for key, annotation in data.annotations.items():
        where = f"{data.path}, annotation {key}"
        category = _look_up(annotation.get("category_id"), data.categories, "category_id", where)
        yield ReferringQuery(
            row_id=str(key), annotation=annotation, text=category["name"], where=where
        )


def _expression_queries(path: Path, data: Instances) -> Iterator[ReferringQuery]:
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _expression_query(line, data, f"{path}, line {number}")


def _expression_query(line: str, data: Instances, where: str) -> ReferringQuery:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    # An expression is one record of its line, number 0.
    reference = _checked(record, REFERENCE_FIELDS, f"{where}[0]")
    key, text = reference["annotation_id"], reference["expression"]
    annotation = _look_up(key, data.annotations, "annotation_id", where)
    if reference["image_id"] != annotation["image_id"]:
        raise InputError(
            f"{where}: image_id = {reference['image_id']!r}, but its annotation lies in image"
            f" {annotation['image_id']!r}"
        )
    if not isinstance(text, str):
        raise InputError(f"{where}: expression = {text!r}: must be a string")
    return ReferringQuery(
        row_id=str(reference["ref_id"]), annotation=annotation, text=text, where=where
    )


def _image_of(query: ReferringQuery, data: Instances) -> Record:
    return _look_up(query.annotation["image_id"], data.images, "image_id", query.where)


def _look_up(key: Any, table: dict[Any, Record], field: str, where: str) -> Record:
    try:
        return table[key]
    except (KeyError, TypeError):
        raise InputError(
            f"{where}: {field} = {key!r}: the instances file has none of that id"
        ) from None


def _distinct(queries: Iterable[ReferringQuery]) -> Iterator[ReferringQuery]:
    """Yield the queries, of which no two may have the same row_id."""
    seen: dict[str, str] = {}
    for query in queries:
        if query.row_id in seen:
            raise InputError(
                f"{query.where}: ref_id = {query.row_id!r} stands at {seen[query.row_id]} too. It"
                " becomes the row_id, so give each expression its own"
            )
        seen[query.row_id] = query.where
        yield query


def _image_files(
    queries: Iterable[ReferringQuery], data: Instances, folder: Path, allow_roots: Sequence[str]
) -> dict[Any, str]:
    """Return the paths of the image files that are there, by the image's id."""
    settings = SegmentSettings(allow_roots=tuple(allow_roots))
    files: dict[Any, str] = {}
    for image_id in {query.annotation["image_id"] for query in queries}:
        path = _image_path(data, image_id, folder, settings)
        if os.path.isfile(path):
            files[image_id] = path
    return files


def _image_path(data: Instances, image_id: Any, folder: Path, settings: SegmentSettings) -> str:
    """Return the real path of an image file. Instances come from strangers, as tables do."""
    name = data.images[image_id]["file_name"]
    where = f"{data.path}, image {image_id}"
    if not isinstance(name, str):
        raise InputError(f"{where}: file_name = {name!r}: must be a string")
    try:
        # Relative names start at the folder, as if a table of it named them. It is made absolute,
        # as "." before a name would be lost.
        return resolve(name, str(folder.absolute() / data.path.name), settings)
    except ImageError as error:
        raise InputError(
            f"{where}: file_name: {error.code}: {error.detail}. Put it below --images, or name its"
            " folder with --allow-root if you trust the file"
        ) from None


def _rows(
    queries: Iterable[ReferringQuery], data: Instances, files: Mapping[Any, str]
) -> Iterator[Record]:
    """Yield the rows of queries that are ordered by image, each of which is read once."""
    by_image = groupby(queries, key=lambda query: _image_of(query, data)["id"])
    for image_id, group in by_image:
        image = data.images[image_id]
        content = None
        if image_id in files:
            content = Path(files[image_id]).read_bytes()
        for query in group:
            yield {
                "row_id": query.row_id,
                "image": {"bytes": content, "path": image["file_name"]},
                "query": query.text,
                "mask": _truth(query.annotation, image, data),
            }


def _truth(annotation: Record, image: Record, data: Instances) -> rle.Rle:
    try:
        return true_rle(annotation["segmentation"], image["height"], image["width"])
    except ValueError as error:
        raise InputError(f"{data.path}, annotation {annotation['id']}: {error}") from None


def true_rle(segmentation: Any, height: int, width: int) -> rle.Rle:
    """Return a COCO segmentation as a compressed RLE with string counts.

    Args:
        segmentation: polygons in pixels, or compressed or uncompressed runs (crowds).
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: it is none of these, a polygon has no area to speak of, or the runs do not fit
            height x width.
    """
    merged = _merged(segmentation, height, width)
    counts = merged["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    found = rle.Rle(size=[height, width], counts=counts)
    rle.validate(found)
    return found


def _merged(segmentation: Any, height: int, width: int) -> Record:
    """Return a segmentation as one compressed RLE, whose counts may be bytes."""
    merged: Record
    if isinstance(segmentation, list):
        polygons = _polygons(segmentation)
        merged = coco.merge(coco.frPyObjects(polygons, height, width))
        return merged
    if not _has_runs(segmentation, height, width):
        raise ValueError(
            f"segmentation: must be a list of polygons, or counts with size [{height}, {width}] as"
            " the image has"
        )
    merged = segmentation
    if isinstance(segmentation["counts"], list):
        merged = coco.frPyObjects(segmentation, height, width)
    return merged


def _has_runs(segmentation: Any, height: int, width: int) -> bool:
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        return False
    return list(segmentation.get("size", ())) == [height, width]


def _polygons(segmentation: list[Any]) -> list[list[float]]:
    """Return polygons that pycocotools can take."""
    if not segmentation:
        raise ValueError("segmentation: is empty; leave the annotation out, or give its outline")
    for index, polygon in enumerate(segmentation):
        numbers = polygon if isinstance(polygon, list) else []
        if len(numbers) < POLYGON_NUMBERS or len(numbers) % 2:
            raise ValueError(
                f"segmentation[{index}]: has {len(numbers)} numbers; a polygon needs x and y of"
                " three corners or more"
            )
        # pycocotools reserves memory by the polygon's own length, and crashes on coordinates that
        # no image has.
        if not all(_is_coordinate(value) for value in numbers):
            raise ValueError(
                f"segmentation[{index}]: a coordinate is no number, or outside"
                f" -{MAX_COORDINATE}..{MAX_COORDINATE} pixels"
            )
    return segmentation


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MAX_COORDINATE
