"""COCO files into tables: masks as pycocotools draws them, and errors that name the record."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from tests.support.tables import png
from wordmask.model.masks import rle
from wordmask.schemas.queries import InputError
from wordmask.tasks.convert.coco import Imported, import_coco, true_rle
from wordmask.tasks.table import truth

HEIGHT, WIDTH = 6, 8
BOX = [1, 1, 5, 1, 5, 4, 1, 4]


def filled(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def instances() -> dict[str, Any]:
    return {
        "images": [
            {"id": id, "file_name": f"{id}.png", "height": HEIGHT, "width": WIDTH} for id in (7, 3)
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 10, "image_id": 7, "category_id": 1, "segmentation": [BOX]},
            {
                "id": 11,
                "image_id": 3,
                "category_id": 2,
                "segmentation": [BOX, [6, 0, 8, 0, 8, 2, 6, 2]],
            },
            {
                "id": 12,
                "image_id": 7,
                "category_id": 2,
                "iscrowd": 1,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": [6, 12, 30]},
            },
        ],
    }


REFS = [
    {"ref_id": 5, "image_id": 7, "annotation_id": 12, "expression": "cats"},
    {"ref_id": 4, "image_id": 3, "annotation_id": 11, "expression": "a cat"},
]


def write(
    folder: Path, data: Any, refs: list[Any] | None = None, images: tuple[int, ...] = (7, 3)
) -> tuple[Path, Path | None]:
    for number in images:
        (folder / f"{number}.png").write_bytes(png(number, height=HEIGHT, width=WIDTH))
    (folder / "instances.json").write_text(json.dumps(data))
    if refs is None:
        return folder / "instances.json", None
    (folder / "refs.jsonl").write_text("\n".join(json.dumps(ref) for ref in refs) + "\n\n")
    return folder / "instances.json", folder / "refs.jsonl"


def imported(
    folder: Path, data: Any, refs: list[Any] | None = None, **options: Any
) -> tuple[Imported, list[dict[str, Any]]]:
    path, expressions = write(folder, data, refs, **options)
    done = import_coco(path, folder, str(folder / "out.parquet"), expressions=expressions)
    return done, pq.read_table(folder / "out.parquet").to_pylist()


def test_without_expressions_each_instance_is_asked_for_by_category(tmp_path: Path) -> None:
    done, rows = imported(tmp_path, instances())
    assert done == Imported(rows=3, missing_images=0)
    assert [(row["row_id"], row["query"], row["image"]["path"]) for row in rows] == [
        ("11", "cat", "3.png"),
        ("10", "dog", "7.png"),
        ("12", "cat", "7.png"),
    ]
    assert rows[0]["image"]["bytes"] == (tmp_path / "3.png").read_bytes()


def test_expressions_ask_by_their_words(tmp_path: Path) -> None:
    _, rows = imported(tmp_path, instances(), REFS)
    assert [(row["row_id"], row["query"]) for row in rows] == [("4", "a cat"), ("5", "cats")]
    np.testing.assert_array_equal(
        rle.decode(rows[1]["mask"]), np.repeat([[0, 1, 1, 0, 0, 0, 0, 0]], HEIGHT, axis=0)
    )


def test_a_missing_image_keeps_its_rows(tmp_path: Path) -> None:
    done, rows = imported(tmp_path, instances(), images=(3,))
    assert done == Imported(rows=3, missing_images=2)
    assert [row["image"]["bytes"] is None for row in rows] == [False, True, True]
    assert rows[1]["image"]["path"] == "7.png"


@pytest.mark.parametrize(
    "name", ["../secret.png", "{folder}/secret.png", "file://{folder}/secret.png", "link.png"]
)
def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(height=HEIGHT, width=WIDTH))
    images = tmp_path / "images"
    images.mkdir()
    (images / "link.png").symlink_to("../secret.png")
    data = instances()
    data["images"][0]["file_name"] = name.format(folder=tmp_path)
    path, _ = write(images, data)
    dest = tmp_path / "out.parquet"
    with pytest.raises(InputError, match=r"image 7: file_name: uri_not_allowed: .* --allow-root"):
        import_coco(path, images, str(dest))
    assert not dest.exists()


def test_a_file_below_an_allowed_root_is_imported(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "more/7.png").write_bytes(png(7, height=HEIGHT, width=WIDTH))
    data = instances()
    data["images"][0]["file_name"] = f"{tmp_path}/more/7.png"
    path, _ = write(tmp_path / "images", data)
    dest = str(tmp_path / "out.parquet")
    import_coco(path, tmp_path / "images", dest, allow_roots=[str(tmp_path / "more")])
    last = pq.read_table(dest).to_pylist()[-1]
    assert last["image"]["bytes"] == (tmp_path / "more/7.png").read_bytes()


def test_a_file_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    data = instances()
    data["images"][0]["file_name"] = 7
    with pytest.raises(InputError, match="image 7: file_name = 7: must be a string"):
        imported(tmp_path, data)


def test_polygons_are_united() -> None:
    np.testing.assert_array_equal(rle.decode(true_rle([BOX], HEIGHT, WIDTH)), filled(1, 1, 4, 3))
    both = rle.decode(true_rle([BOX, [6, 0, 8, 0, 8, 2, 6, 2]], HEIGHT, WIDTH))
    np.testing.assert_array_equal(both, filled(1, 1, 4, 3) | filled(6, 0, 2, 2))


def test_compressed_runs_pass_through() -> None:
    found = rle.encode(filled(2, 1, 3, 4))
    assert (
        true_rle({"size": [HEIGHT, WIDTH], "counts": found["counts"].encode()}, HEIGHT, WIDTH)
        == found
    )


def test_real_outlines_become_what_pycocotools_makes_of_them(coco100: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(coco100 / "instances.json")
    for annotation in theirs.dataset["annotations"]:
        image = theirs.imgs[annotation["image_id"]]
        ours = rle.decode(true_rle(annotation["segmentation"], image["height"], image["width"]))
        np.testing.assert_array_equal(ours, theirs.annToMask(annotation))


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = instances()
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no list of images"),
        ({"images": []}, "no list annotations, categories"),
        (broken(lambda d: d["images"][1].pop("height")), r"images\[1\]: lacks height"),
        (broken(lambda d: d["annotations"][1].pop("id")), r"annotations\[1\]: lacks id"),
        (broken(lambda d: d["annotations"].append(3)), r"annotations\[3\]: lacks everything"),
        (broken(lambda d: d["annotations"][0].update(image_id=99)), "annotation 10: image_id = 99"),
        (
            broken(lambda d: d["annotations"][0].update(category_id=None)),
            "annotation 10: category_id = None",
        ),
        (
            broken(lambda d: d["annotations"][0].update(segmentation=[])),
            "annotation 10: segmentation: is empty",
        ),
        (
            broken(lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]])),
            r"annotation 10: segmentation\[0\]: has 4 numbers",
        ),
        (broken(lambda d: d["annotations"][0].update(segmentation=[[*BOX, 1]])), "has 9 numbers"),
        (
            broken(lambda d: d["annotations"][2]["segmentation"].update(size=[9, 9])),
            r"annotation 12: .*size \[6, 8\]",
        ),
        (
            broken(lambda d: d["annotations"][2]["segmentation"].update(counts=[6, 12])),
            "annotation 12: .*add up to 18",
        ),
    ],
)
def test_a_broken_instances_file_is_one_clear_error(tmp_path: Path, data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        imported(tmp_path, data)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotation_id": 99}, "line 2: annotation_id = 99"),
        ({"image_id": 7}, "line 2: image_id = 7, but its annotation lies in image 3"),
        ({"ref_id": 5}, "line 2: ref_id = '5' stands at .*line 1 too"),
        ({"expression": 4}, "line 2: expression = 4: must be a string"),
    ],
)
def test_a_broken_expression_is_named_by_its_line(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        imported(tmp_path, instances(), [REFS[0], REFS[1] | change])


def test_files_that_are_no_json(tmp_path: Path) -> None:
    path, expressions = write(tmp_path, instances(), REFS)
    assert expressions is not None
    expressions.write_text('{"ref_id": 1}')
    with pytest.raises(InputError, match=r"line 1.*lacks image_id, annotation_id, expression"):
        import_coco(path, tmp_path, str(tmp_path / "out.parquet"), expressions=expressions)
    expressions.write_text("so\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        import_coco(path, tmp_path, str(tmp_path / "out.parquet"), expressions=expressions)
    path.write_text("so")
    with pytest.raises(InputError, match="not JSON"):
        import_coco(path, tmp_path, str(tmp_path / "out.parquet"))


def test_an_error_among_the_rows_leaves_the_older_table_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "ROW_GROUP_ROWS", 1)
    imported(tmp_path, instances())
    before = (tmp_path / "out.parquet").read_bytes()
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 3
    with pytest.raises(InputError):
        imported(tmp_path, broken(lambda d: d["annotations"][2].update(segmentation=[])))
    assert (tmp_path / "out.parquet").read_bytes() == before


def test_row_groups_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "ROW_GROUP_BYTES", 1)
    imported(tmp_path, instances(), images=(3,))
    sizes = [pq.read_metadata(tmp_path / "out.parquet").row_group(i).num_rows for i in range(2)]
    assert sizes == [1, 2], "an image fills a group, rows without one share the next"


def test_to_object_storage_whole_or_not_at_all(tmp_path: Path, s3: str) -> None:
    path, _ = write(tmp_path, instances())
    import_coco(path, tmp_path, f"{s3}/coco/good.parquet")
    store = truth.Store.open(f"{s3}/coco")
    assert pq.read_table(io.BytesIO(store.read_bytes("good.parquet"))).num_rows == 3
    path.write_text(json.dumps(broken(lambda d: d["annotations"][2].update(segmentation=[]))))
    with pytest.raises(InputError):
        import_coco(path, tmp_path, f"{s3}/coco/bad.parquet")
    assert store.names("", ".parquet") == {"good"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["annotations"].append(d["annotations"][0]), "annotations: 1 ids occur twice"),
        (lambda d: d["images"].append(d["images"][0]), "images: 1 ids occur twice"),
        (
            lambda d: d["annotations"][0].update(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
            "annotation 10.*outside",
        ),
        (
            lambda d: d["annotations"][0].update(segmentation=[[0, 0, "1", 0, 1, 1]]),
            "annotation 10.*no number",
        ),
    ],
)
def test_segmentations_that_would_be_lost_or_crash_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        imported(tmp_path, broken(change))


def test_a_line_separator_within_an_expression_ends_no_line(tmp_path: Path) -> None:
    path, expressions = write(tmp_path, instances(), REFS[:1])
    expressions.write_text(
        json.dumps(REFS[0] | {"expression": "a\u2028cat"}, ensure_ascii=False), encoding="utf-8"
    )
    import_coco(path, tmp_path, str(tmp_path / "out.parquet"), expressions=expressions)
    assert pq.read_table(tmp_path / "out.parquet").column("query").to_pylist() == ["a\u2028cat"]


@pytest.mark.parametrize("images", [".", "../in"])
def test_the_folder_of_images_may_be_given_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:
    (tmp_path / "in").mkdir()
    path, _ = write(tmp_path / "in", instances())
    monkeypatch.chdir(tmp_path / "in")
    done = import_coco(path, Path(images), str(tmp_path / "out.parquet"))
    assert done == Imported(rows=3, missing_images=0)
