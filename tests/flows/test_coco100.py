"""273 expressions about 100 real photographs, from JPEG files to masks, with the default model."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as coco
from pycocotools.coco import COCO

from tests.support.commands import wordmask
from tests.support.tables import read_rows
from wordmask.model.masks.rasterize import rasterize_pixels

ROWS = 273


@pytest.fixture(scope="module")
def table(coco100: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("coco100") / "coco.parquet"
    expressions = coco100 / "referring.jsonl"
    options = ["--images", coco100 / "images", "--expressions", expressions, "--json"]
    done = wordmask("import", "coco", coco100 / "instances.json", dest, *options)
    assert json.loads(done.stdout) == {"rows": ROWS, "missing_images": 0}
    return dest


@pytest.fixture(scope="module")
def output(table: Path, shared_api: dict[str, str]) -> Path:
    out = table.parent / "out"
    done = wordmask("run", table, out, "--json", "--shard-rows", 70, **shared_api)
    assert json.loads(done.stdout)["rows"] == ROWS
    return out


@pytest.fixture(scope="module")
def masks(output: Path) -> list[dict[str, Any]]:
    return read_rows(output, "masks")


def decoded(row: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the mask of a row as pycocotools decodes it."""
    counts = row["mask"]["counts"].encode()
    mask: NDArray[np.uint8] = coco.decode({"size": row["mask"]["size"], "counts": counts})
    return mask


def test_every_row_is_a_mask_or_a_reject_once(
    output: Path, masks: list[dict[str, Any]], table: Path
) -> None:
    found = [row["row_id"] for row in [*masks, *read_rows(output, "rejects")]]
    assert sorted(found) == sorted(pq.read_table(table, columns=["row_id"]).column(0).to_pylist())
    assert len(found) == ROWS


def test_masks_have_the_size_of_the_photograph_as_seen(
    masks: list[dict[str, Any]], table: Path
) -> None:
    sizes = {}
    for row in pq.read_table(table, columns=["row_id", "image"]).to_pylist():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        width, height = ImageOps.exif_transpose(image).size
        sizes[row["row_id"]] = [height, width]
    for row in masks:
        assert row["mask"]["size"] == [row["height"], row["width"]] == sizes[row["row_id"]]


def test_masks_decode_and_paths_fill_to_them_exactly(masks: list[dict[str, Any]]) -> None:
    for row in masks:
        mask = decoded(row)
        assert mask.sum() == row["area"]
        filled = rasterize_pixels(row["path"], row["height"], row["width"])
        np.testing.assert_array_equal(filled, mask)


def test_imported_masks_are_those_of_the_annotations(coco100: Path, table: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(coco100 / "instances.json")
    lines = (coco100 / "referring.jsonl").read_text().splitlines()
    refs = {str(ref["ref_id"]): ref for ref in map(json.loads, lines)}
    for row in pq.read_table(table, columns=["row_id", "query", "mask"]).to_pylist():
        ref = refs[row["row_id"]]
        assert row["query"] == ref["expression"]
        annotation = theirs.anns[ref["annotation_id"]]
        np.testing.assert_array_equal(decoded(row), theirs.annToMask(annotation))


def test_pandas_polars_and_datasets_read_the_files(output: Path, table: Path) -> None:
    parts = sorted(map(str, (output / "masks").glob("*.parquet")))
    frame = pd.concat([pd.read_parquet(part) for part in parts])
    assert len(frame) == pl.read_parquet(parts).height
    assert isinstance(frame.iloc[0]["mask"]["counts"], str)
    cache = str(table.parent / "cache")
    loaded = datasets.Dataset.from_parquet(str(table), cache_dir=cache)
    loaded = loaded.cast_column("image", datasets.Image())
    assert loaded[0]["image"].size[0] > 0


def test_without_expressions_the_category_is_the_query(coco100: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    dest = tmp_path / "instances.parquet"
    done = wordmask(
        "import", "coco", coco100 / "instances.json", dest, "--images", tmp_path / "empty", "--json"
    )
    assert json.loads(done.stdout) == {"rows": 712, "missing_images": 712}
    rows = pq.read_table(dest).to_pylist()
    assert rows[0]["image"]["bytes"] is None
    assert {"person", "dog"} <= {row["query"] for row in rows}
    assert os.path.basename(rows[0]["image"]["path"]) == rows[0]["image"]["path"]
