"""COCO instances, with or without referring expressions, as an input table with ground truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from schemas.queries import InputError
from tasks.tables import write_table


@dataclass(frozen=True)
class Imported:
    """Rows written, and those of them whose image file is not there (the run rejects them)."""

    rows: int
    missing_images: int


def import_coco(instances: Path, images: Path, dest: str, *, expressions: Path | None = None) -> Imported:
    """Write one row per expression (row_id = ref_id), or without expressions one per instance, asking for its category
    (row_id = annotation id). Ordered by image, so that an image's queries meet in one batch.

    Raises:
        InputError: a file is not what it should be, or an expression names an unknown annotation.
    """
    data = _load_instances(instances)
    missing: set[str] = set()
    asked = list(_asked(data, expressions))
    rows = write_table(dest, _rows(data, asked, images, missing))
    names = {image["id"]: image["file_name"] for image in data["images"]}
    return Imported(rows=rows, missing_images=sum(names[annotation["image_id"]] in missing for _, annotation, _ in asked))


def _load_instances(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}). Give a COCO instances file") from None
    if missing := [key for key in ("images", "annotations", "categories") if key not in data]:
        raise InputError(f"{path}: no {', '.join(missing)} in it. Give a COCO instances file")
    return data


def _asked(data: dict[str, Any], expressions: Path | None) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(row_id, annotation, query) in order of image, then of the source."""
    if expressions is None:
        names = {category["id"]: category["name"] for category in data["categories"]}
        asked = [(str(a["id"]), a, names[a["category_id"]]) for a in data["annotations"]]
    else:
        annotations = {annotation["id"]: annotation for annotation in data["annotations"]}
        asked = list(_expressions(expressions, annotations))
    yield from sorted(asked, key=lambda item: item[1]["image_id"])


def _expressions(path: Path, annotations: dict[int, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], str]]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            ref = json.loads(line)
            annotation = annotations[ref["annotation_id"]]
            yield str(ref["ref_id"]), annotation, ref["expression"]
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not a JSON object ({error})") from None
        except KeyError as error:
            needed = "each line needs ref_id, image_id, annotation_id, expression, and an annotation_id of the instances file"
            raise InputError(f"{path}, line {number}: {error} is missing or unknown; {needed}") from None


def _rows(data: dict[str, Any], asked: list[tuple[str, dict[str, Any], str]], folder: Path, missing: set[str]) -> Iterator[dict[str, Any]]:
    images = {image["id"]: image for image in data["images"]}
    name, data_bytes = "", None
    for row_id, annotation, query in asked:
        image = images[annotation["image_id"]]
        if image["file_name"] != name:
            name = image["file_name"]
            path = folder / name
            data_bytes = path.read_bytes() if path.is_file() else None
            if data_bytes is None:
                missing.add(name)
        truth = true_rle(annotation["segmentation"], image["height"], image["width"])
        yield {"row_id": row_id, "image": {"bytes": data_bytes, "path": name}, "query": query, "mask": truth}


def true_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's polygons, uncompressed or compressed runs, as one compressed RLE with string counts."""
    if isinstance(segmentation, list):
        merged = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        merged = coco.frPyObjects(segmentation, height, width)
    else:
        merged = segmentation
    counts = merged["counts"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
