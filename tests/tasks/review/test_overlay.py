"""Overlays, looked at pixel by pixel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, publish_run
from tests.support.tables import png, read_rows, write_input
from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.review.overlay import (
    CAPTION,
    COLOURS,
    DIM,
    FILL,
    PAPER,
    draw_mask,
    note_of,
    overlay,
    png_bytes,
    standout,
)
from wordmask.tasks.review.sheet import TILE, contact_sheet, sheet, sheet_columns
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store

GREY = np.full((60, 80, 3), 100, np.uint8)


def square() -> np.ndarray:
    mask = np.zeros(GREY.shape[:2], np.uint8)
    mask[20:40, 30:60] = 1
    return mask


def near(colour: tuple[int, int, int]) -> Any:
    """A smoothed line lets a little of its ground through."""
    return pytest.approx(np.array(colour, float), abs=45)


def test_the_object_keeps_its_light_and_the_rest_is_dimmed() -> None:
    drawn = draw_mask(GREY, square())
    colour = standout(GREY, square())
    assert drawn[0, 0].tolist() == [round(100 * DIM)] * 3
    np.testing.assert_array_equal(
        drawn[30, 45], np.round(100 + FILL * (np.array(colour, np.float32) - 100))
    )
    assert drawn[20, 45] == near(colour), "the outline runs along the object's own edge"


def test_an_empty_mask_leaves_the_image_as_it_is() -> None:
    np.testing.assert_array_equal(draw_mask(GREY, np.zeros_like(square())), GREY)


def test_holes_have_an_outline_too() -> None:
    mask = square()
    mask[26:34, 40:50] = 0
    assert draw_mask(GREY, mask)[30, 39] == near(standout(GREY, mask))


@pytest.mark.parametrize("index", range(len(COLOURS)))
def test_the_outline_is_never_of_the_objects_or_the_grounds_colour(index: int) -> None:
    image = GREY.copy()
    image[square() > 0] = COLOURS[index]
    assert standout(image, square()) != COLOURS[index]
    image = np.full_like(GREY, 100)
    image[square() == 0] = COLOURS[index]
    assert standout(image, square()) != COLOURS[index]


@pytest.mark.parametrize("shape", [(60, 80), (900, 300), (1, 400), (3, 2)])
def test_pictures_have_the_side_asked_for(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, np.uint8)
    page = overlay(np.full((*shape, 3), 90, np.uint8), mask, "a thing", "absent", side=200)
    assert max(page.width, page.height - CAPTION) == 200
    assert min(page.size) > 0


def test_a_long_expression_takes_two_lines_and_ends_in_an_ellipsis() -> None:
    def ink(title: str) -> np.ndarray:
        strip = np.asarray(overlay(GREY, square(), title, "", side=200))[-CAPTION:]
        return np.flatnonzero((strip != PAPER).any(axis=(1, 2)))

    short, long = ink("thing"), ink("the thing " * 30)
    assert short.max() < 24 < long.max() < 44
    assert ink("x" * 200).max() < 24, "one word is cut, not broken"


def test_notes_say_what_is_known() -> None:
    assert (
        note_of({"status": "mask", "predicted_iou": 0.871, "trust": 0.5})
        == "predicted IoU 0.87  ·  trust 0.50"
    )
    assert note_of({"status": "mask", "predicted_iou": None, "trust": None}) == "coarse mask"
    assert note_of({"status": "absent", "predicted_iou": None, "trust": 0.5}) == "absent"


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (5, 3), (7, 4), (12, 4), (20, 5), (100, 10)]
)
def test_sheets_are_wider_than_high_and_leave_few_places_empty(count: int, columns: int) -> None:
    assert sheet_columns(count) == columns


def run(tmp_path: Path, queries: list[str | None]) -> RunSettings:
    write_input(
        tmp_path / "in.parquet",
        [{"row_id": f"r{i}", "image": png(i), "query": query} for i, query in enumerate(queries)],
    )
    settings = RunSettings(
        input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), shard_rows=4
    )
    plan = plan_of(settings, REVISION)
    for shard in plan.shards:
        process_shard(shard, settings, ShardContext(FakeSegmenter()))
    publish_run(plan, settings)
    return settings


def test_a_sheet_is_spread_over_the_whole_run(tmp_path: Path) -> None:
    settings = run(tmp_path, [f"thing {i}" for i in range(10)])
    masks = {row["row_id"]: row for row in read_rows(settings.output, "masks")}
    tiles = []
    for index in (0, 3, 6, 9):
        row = masks[f"r{index}"]
        pixels = np.asarray(Image.open(io.BytesIO(png(index))))
        tiles.append(
            overlay(pixels, rle.decode(row["mask"]), f"thing {index}", note_of(row), side=TILE)
        )
    np.testing.assert_array_equal(
        np.asarray(sheet(Store.open(settings.output), 4)), np.asarray(contact_sheet(tiles))
    )


def test_a_sheet_of_fewer_masks_than_asked_for(tmp_path: Path) -> None:
    settings = run(tmp_path, ["a", None, "b"])
    assert (
        Image.open(io.BytesIO(png_bytes(sheet(Store.open(settings.output), 12)))).width
        == 2 * TILE + 3 * 14
    )


def test_a_run_without_masks_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no masks, only 2 rejects"):
        sheet(Store.open(run(tmp_path, [None, ""]).output), 4)
    with pytest.raises(FileNotFoundError, match="no published run"):
        sheet(Store.open(str(tmp_path / "nowhere")), 4)
