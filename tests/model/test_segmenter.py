"""The whole method on the default model, and what surrounds the refiner."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wordmask.model import pipeline, stages
from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.requests import Decoded
from wordmask.model.masks import rle
from wordmask.model.masks.cleanup import crop_xyxy
from wordmask.model.masks.crops import cut_crop, paste_mask
from wordmask.model.masks.rasterize import rasterize, rasterize_pixels
from wordmask.model.nn.config import MAX_PROMPT_TOKENS, MoondreamSegmentationConfig
from wordmask.model.nn.layers import gelu_tanh
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import TEST_SEEDS
from wordmask.model.segmenter import Query, Segmenter
from wordmask.model.types import QueryError


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained("demo", device="cpu")


SCENES = SceneDataset("shipped", "test")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return SCENES.scene(TEST_SEEDS.start).image_HW3


def test_segment_returns_the_keys_of_the_moondream_client(segmenter: Segmenter) -> None:
    drawn = SCENES.scene(TEST_SEEDS.start)
    scene, (expression,) = drawn.image_HW3, SCENES.expressions(drawn, 0, 1, templates=("noun",))
    found = segmenter.segment(Image.fromarray(scene), expression.text, spatial_refs=[(0.5, 0.5)])
    box = found["bbox"]
    assert set(box) == {"x_min", "y_min", "x_max", "y_max"}
    assert 0 <= box["x_min"] < box["x_max"] <= 1
    assert re.fullmatch(r"[MHVz0-9. ]+", found["path"])
    centre = ((box["x_min"] + box["x_max"]) / 2, (box["y_min"] + box["y_max"]) / 2)
    filled = rasterize(
        found["path"],
        (*centre, box["x_max"] - box["x_min"], box["y_max"] - box["y_min"]),
        *scene.shape[:2],
    )
    np.testing.assert_array_equal(filled, found["mask"])
    assert found["predicted_iou"] is not None
    assert found["path_logprob"] < 0
    assert 0 <= found["coarse_refined_iou"] <= 1
    assert 0 <= found["trust"] <= 1


def test_a_batch_answers_in_order_and_encodes_each_image_once(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [SCENES.scene(TEST_SEEDS.start + i) for i in range(3)]
    asked = [(i, e) for i, s in enumerate(scenes) for e in SCENES.expressions(s, i, 2)]
    encoded: list[int] = []
    project = segmenter.model.model.vision.project
    monkeypatch.setattr(
        segmenter.model.model.vision,
        "project",
        lambda final, tilings: (encoded.append(len(tilings)), project(final, tilings))[1],
    )
    found = segmenter.segment_many(
        [s.image_HW3 for s in scenes], [Query(image=i, object=e.text) for i, e in asked]
    )
    assert encoded == [3]
    assert [answer.mask.shape for answer in found] == [
        scenes[i].image_HW3.shape[:2] for i, _ in asked
    ]
    for (i, expression), answer in zip(asked, found, strict=True):
        (alone,) = segmenter.segment_many(
            [scenes[i].image_HW3], [Query(image=0, object=expression.text)]
        )
        assert alone.coarse_path == answer.coarse_path
        np.testing.assert_array_equal(alone.mask, answer.mask)


def test_fields_agree_with_each_other(segmenter: Segmenter, scene: np.ndarray) -> None:
    (found,) = segmenter.segment_many([scene], [Query(image=0, object="the object on the left")])
    np.testing.assert_array_equal(rle.decode(found.rle), found.mask)
    np.testing.assert_array_equal(rasterize_pixels(found.path, *found.mask.shape), found.mask)
    x, y, w, h = found.bbox
    assert found.mask[y : y + h, x : x + w].sum() == found.area == found.mask.sum()


def test_without_refinement_the_mask_is_the_path_and_says_so(
    segmenter: Segmenter, scene: np.ndarray
) -> None:
    coarse_only = Segmenter(
        segmenter.model, segmenter.tokenizer, revision="x", refiner_iterations=0
    )
    (found,) = coarse_only.segment_many([scene], [Query(image=0, object="the object on the left")])
    assert not found.refined
    assert found.predicted_iou is None
    assert found.trust is not None


def test_an_empty_refined_mask_falls_back_to_the_coarse_one_and_says_so(
    segmenter: Segmenter, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = Query(image=0, object="the object on the left")
    (before,) = segmenter.segment_many([scene], [query])
    assert before.refined
    iterate = segmenter.model.head.iterate
    monkeypatch.setattr(
        segmenter.model.head,
        "iterate",
        lambda *args, **options: (r := iterate(*args, **options))._replace(
            probs=torch.zeros_like(r.probs)
        ),
    )
    (found,) = segmenter.segment_many([scene], [query])
    assert not found.refined
    assert found.area > 0
    assert found.coarse_refined_iou == 0
    assert found.predicted_iou == pytest.approx(before.predicted_iou), (
        "kept, though its mask was not used"
    )


def drawing(row: Decoded) -> Callable[..., Iterator[tuple[Any, Decoded]]]:
    """Stands in for the decoder: every query gets this row."""
    return lambda _self, asked: ((tag, row) for _, prompts in asked for tag, _ in prompts)


def test_a_malformed_path_is_salvaged_and_says_so(
    segmenter: Segmenter, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tuple(
        segmenter.tokenizer.path_ids(
            iter(["M", "0", "0", "L", "960", "0", "960", "960", "0", "960", "C", "5", "5"])
        )
    )
    row = Decoded(
        box=(0.5, 0.5, 0.4, 0.4), ids=ids, absent=False, truncated=True, path_logprob=-0.5
    )
    monkeypatch.setattr(Engine, "generate", drawing(row))
    (found,) = segmenter.segment_many([scene], [Query(image=0, object="x")])
    assert found.salvaged
    assert found.truncated
    assert found.path_problem == "token 10: C takes 6 numbers, or a multiple of that, found 2"
    assert found.coarse_path == "M 0 0 L 1 0 1 1 0 1"
    assert not parse_path(segmenter.tokenizer.path_tokens(ids)).well_formed


def test_crop_and_coarse_box_start_from_the_clipped_box(
    segmenter: Segmenter, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tuple(segmenter.tokenizer.path_ids(["M", "0", "0", "L", "960", "0", "960", "960", "z"]))
    row = Decoded(
        box=(0.0, 0.5, 0.5, 0.5), ids=ids, absent=False, truncated=False, path_logprob=-0.5
    )
    height, width = scene.shape[:2]
    crop = segmenter.stages.crop_for_refiner(scene, np.ones((height, width), np.uint8), row)
    assert crop is not None
    assert crop.xyxy == crop_xyxy((0.0, 0.25, 0.25, 0.75), height, width)
    monkeypatch.setattr(Engine, "generate", drawing(row))
    assert segmenter.segment(scene, "x")["coarse_bbox"] == (0.125, 0.5, 0.25, 0.5)


def test_absent_is_an_empty_mask(
    segmenter: Segmenter, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Decoded(box=(0.5, 0.5, 0.4, 0.4), ids=(), absent=True, truncated=False, path_logprob=None)
    monkeypatch.setattr(Engine, "generate", drawing(row))
    found = segmenter.segment(scene, "a unicorn")
    assert (found["status"], found["area"], found["bbox"], found["path"]) == ("absent", 0, None, "")
    assert not found["salvaged"]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error_of_that_row(
    segmenter: Segmenter, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    row = Decoded(
        box=(0.5, 0.5, 0.4, 0.4), ids=(), absent=False, truncated=False, path_logprob=score
    )
    monkeypatch.setattr(Engine, "generate", drawing(row))
    with pytest.raises(FloatingPointError, match="not finite"):
        segmenter.segment(scene, "the red circle")


def test_deterministic_rows_do_not_depend_on_their_place_with_an_odd_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Segmenter.from_pretrained("demo", device="cpu", deterministic=True)
        assert torch.get_num_threads() == 2
        x = (2 * torch.randn(8192, generator=torch.Generator().manual_seed(0))).repeat(32, 1)
        with torch.inference_mode():
            y = gelu_tanh(x)
        assert torch.equal(y, y[:1].expand_as(y))
    finally:
        torch.set_num_threads(before)


def test_deterministic_answers_need_a_power_of_two_of_threads(segmenter: Segmenter) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ValueError, match=r"PyTorch has 3 threads .* call .*set_up_process"):
            Segmenter(segmenter.model, segmenter.tokenizer, revision="x", deterministic=True)
    finally:
        torch.set_num_threads(before)


def test_making_a_segmenter_leaves_the_process_as_it_was(segmenter: Segmenter) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Segmenter(segmenter.model, segmenter.tokenizer, revision="x")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_longest_prompt_is_bounded_whatever_the_context() -> None:
    assert MoondreamSegmentationConfig().max_prompt_tokens == MAX_PROMPT_TOKENS
    assert (
        MoondreamSegmentationConfig(text={"max_context": 1600}).max_prompt_tokens
        == 1600 - 730 - 3 - 768
    )


def test_photographs_of_any_shape(segmenter: Segmenter) -> None:
    for height, width in ((1, 1), (3, 500), (500, 3), (300, 200), (1000, 1400)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        (found,) = segmenter.segment_many([image], [Query(image=0, object="the red circle")])
        assert found.mask.shape == (height, width)


@pytest.mark.parametrize(
    ("query", "refs", "code"),
    [
        ("  ", (), "empty_query"),
        ("circle " * 100, (), "query_too_long"),
        ("circle", ((0.5, 0.5),) * 200, "query_too_long"),
        ("circle", ((0.5,),), "bad_spatial_ref"),
        ("circle", ((0.5, 1.2),), "spatial_ref_out_of_range"),
        ("circle", ((0.5, float("nan")),), "spatial_ref_out_of_range"),
        ("circle", ((0.5, 0.5, 0.4, 0.6),), "spatial_ref_out_of_range"),
    ],
)
def test_queries_that_cannot_be_asked(
    segmenter: Segmenter, query: str, refs: tuple, code: str
) -> None:
    with pytest.raises(QueryError) as caught:
        segmenter.check_query(query, refs)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_refused(segmenter: Segmenter, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \(height, width, 3\)"):
        segmenter.segment(image, "circle")


def test_bfloat16_runs_and_finds_much_the_same(segmenter: Segmenter, scene: np.ndarray) -> None:
    low = Segmenter.from_pretrained("demo", device="cpu", dtype="bfloat16")
    query = Query(image=0, object="the object on the left")
    (found,), (exact,) = (s.segment_many([scene], [query]) for s in (low, segmenter))
    assert low.model.dtype == torch.bfloat16
    assert found.status == exact.status == "mask"


# --- around the refiner


def test_crop_is_the_grown_box_and_paste_puts_it_back() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[40:60, 80:120] = 255
    coarse = (image[..., 0] > 0).astype(np.uint8)
    crop = cut_crop(image, coarse, (0.5, 0.5, 0.2, 0.2), 64)
    assert crop is not None
    assert crop.xyxy == (70, 35, 130, 65)
    assert crop.image.shape == (64, 64, 3)
    assert set(np.unique(crop.mask)) == {0.0, 1.0}
    back = paste_mask(crop.mask, crop.xyxy, 100, 200)
    assert (back & coarse).sum() / (back | coarse).sum() > 0.93
    assert not back[:35].any()
    assert not back[:, 130:].any()


def test_a_box_outside_the_image_has_no_crop() -> None:
    image, mask = np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10), np.uint8)
    assert cut_crop(image, mask, (1.9, 0.5, 0.2, 0.2), 64) is None


# --- a stream


@pytest.mark.parametrize(
    "method", [{}, {"refiner_iterations": 0}, {"deterministic": True}, {"grammar": False}]
)
def test_a_stream_gives_what_the_method_gives_step_by_step(
    segmenter: Segmenter, scene: np.ndarray, method: dict[str, Any]
) -> None:
    """To the last digit, of present and absent things."""
    made = Segmenter(segmenter.model, segmenter.tokenizer, revision="x", **method)
    noise = np.random.default_rng(0).integers(0, 256, (300, 700, 3), dtype=np.uint8)
    for image in (scene, noise):
        for words in ("the object on the left", "a purple unicorn"):
            query = Query(object=words, spatial_refs=((0.5, 0.5),))
            ((_, answer),) = made.stream([(image, [(None, query)])])
            assert answer.result() == made.segment_one(image, query)


def test_a_stream_gives_each_tag_one_answer_and_takes_images_as_it_goes(
    segmenter: Segmenter,
) -> None:
    scenes = [SCENES.scene(TEST_SEEDS.start + i) for i in range(5)]
    queries = [
        [((i, e.text), Query(object=e.text)) for e in SCENES.expressions(s, i, 2)]
        for i, s in enumerate(scenes)
    ]
    found = dict(
        segmenter.stream(
            ((s.image_HW3, asked) for s, asked in zip(scenes, queries, strict=True)), rows=3
        )
    )
    assert sorted(found) == sorted(tag for asked in queries for tag, _ in asked)
    for (i, words), answer in found.items():
        (alone,) = segmenter.segment_many([scenes[i].image_HW3], [Query(object=words)])
        assert answer.result().rle == alone.rle


@pytest.mark.parametrize(("module", "broken"), [(stages, "rasterize"), (pipeline, "clean")])
def test_an_error_beside_the_model_is_of_its_row_alone(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, module: ModuleType, broken: str
) -> None:
    """Before the refiner, and after it."""
    scenes = [SCENES.scene(TEST_SEEDS.start + i).image_HW3 for i in range(3)]
    work, calls = getattr(module, broken), Counter[str]()

    def once(*args: Any) -> Any:
        calls[broken] += 1
        if calls[broken] == 2:
            raise ValueError("this one is broken")
        return work(*args)

    # One thread: the calls come in their order.
    monkeypatch.setattr(segmenter.pipeline, "_threads", ThreadPoolExecutor(1))
    monkeypatch.setattr(module, broken, once)
    answers = dict(
        segmenter.stream(
            (scene, [(i, Query(object="the object on the left"))]) for i, scene in enumerate(scenes)
        )
    )
    failed = [tag for tag, answer in answers.items() if isinstance(answer.exception(), ValueError)]
    assert len(answers) == 3
    assert len(failed) == 1
    assert all(answers[tag].result().area >= 0 for tag in range(3) if tag not in failed)
