"""Scenes are what they say: masks, colours and expressions are checked against the pixels by slow, obvious means."""

from __future__ import annotations

import colorsys
from collections import Counter
from itertools import combinations

import cv2
import numpy as np
import pytest

from model.train import scenes, shapes
from model.train.scenes import (
    COLOURS,
    MIN_GAP,
    ORDINALS,
    SHAPES,
    SIZES,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VAL_SEEDS,
    VOCABULARY,
    Scene,
    SceneObject,
    expressions,
    make_scene,
    pick_expressions,
)  # fmt: skip

SEEDS = range(TEST_SEEDS.start, TEST_SEEDS.start + 150)
SPARE_WORDS = {"last", "in", "one"}  # known to the tokenizer, in no expression yet
HUES = {"red": (-10, 10), "orange": (18, 40), "yellow": (48, 70), "green": (105, 135), "cyan": (165, 200), "blue": (215, 240),
        "purple": (270, 298)}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [make_scene(seed) for seed in SEEDS]


def same(a: Scene, b: Scene) -> bool:
    pictures = np.array_equal(a.image_HW3, b.image_HW3) and np.array_equal(a.instance_HW, b.instance_HW)
    return pictures and [o.box for o in a.objects] == [o.box for o in b.objects]


def test_everything_is_a_function_of_the_seed(drawn: list[Scene]) -> None:
    for seed, scene in zip(SEEDS[:20], drawn, strict=False):
        assert same(scene, make_scene(seed))
        assert expressions(scene, seed) == expressions(scene, seed)
        assert pick_expressions(scene, seed, 5) == pick_expressions(scene, seed, 5)
    assert not any(same(a, b) for a, b in combinations(drawn[:20], 2))


def test_train_validation_and_test_seeds_share_none() -> None:
    for a, b in combinations((TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS), 2):
        assert max(a.start, b.start) >= min(a.stop, b.stop)
    assert len(TRAIN_SEEDS) == 10**8


def test_masks_part_the_instance_map_and_boxes_are_tight(drawn: list[Scene]) -> None:
    for scene in drawn:
        assert_masks_part_the_instance_map(scene)


def assert_masks_part_the_instance_map(scene: Scene) -> None:
    """And their boxes are tight."""
    assert scene.image_HW3.dtype == np.uint8
    assert scene.instance_HW.dtype == np.int16
    rebuilt = np.full_like(scene.instance_HW, -1)
    for index, thing in enumerate(scene.objects):
        assert thing.mask_HW.dtype == np.uint8
        assert thing.mask_HW.flags.c_contiguous
        assert set(np.unique(thing.mask_HW)) == {0, 1}
        assert (rebuilt[thing.mask_HW > 0] == -1).all(), "two masks share a pixel"
        rebuilt[thing.mask_HW > 0] = index
        ys, xs = np.nonzero(thing.mask_HW)
        assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert np.array_equal(rebuilt, scene.instance_HW)


def test_masks_are_what_later_objects_leave_of_the_painted_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[scenes._Piece] = []
    paint = scenes._paint
    monkeypatch.setattr(scenes, "_paint", lambda rng, image, piece: (painted.append(piece), paint(rng, image, piece)))
    occluded = 0
    for seed in SEEDS:
        painted.clear()
        scene = make_scene(seed)
        assert len(painted) == len(scene.objects)
        alone = [np.zeros(scene.instance_HW.shape, bool) for _ in painted]
        for cover, piece in zip(alone, painted, strict=True):
            h, w = piece.alpha_hw.shape
            cover[piece.y : piece.y + h, piece.x : piece.x + w] = piece.alpha_hw > 0.5
        for index, thing in enumerate(scene.objects):
            left = alone[index] & ~np.any([np.zeros_like(alone[0]), *alone[index + 1 :]], axis=0)
            assert np.array_equal(thing.mask_HW > 0, left)
            assert left.sum() >= 0.6 * alone[index].sum()
            occluded += int(left.sum() < alone[index].sum())
    assert occluded > 50, "objects should often lie in front of each other"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size_name", SIZES)
def test_coverage_is_the_area_of_the_outline(shape: str, size_name: str) -> None:
    piece = scenes._cut(np.random.default_rng(5), shape, "red", size_name, (300, 400))
    radius = 300 * np.random.default_rng(5).uniform(*SIZES[size_name]) / 2  # what _cut draws first
    x, y = radius * shapes.OUTLINES[shape][0].T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert piece.alpha_hw.sum() == pytest.approx(area, rel=0.03)
    assert piece.cover_hw.sum() == pytest.approx(area, rel=0.04)


def test_every_colour_is_the_one_its_name_says(drawn: list[Scene]) -> None:
    for scene in drawn:
        for thing in scene.objects:
            hue, saturation, value = seen_colour(scene, thing)
            if thing.colour == "white":
                assert saturation < 0.12
                assert value > 0.78
            else:
                low, high = HUES[thing.colour]
                assert low <= (hue if thing.colour != "red" or hue < 180 else hue - 360) <= high
                assert saturation > 0.6
                assert value > 0.65


def seen_colour(scene: Scene, thing: SceneObject) -> tuple[float, float, float]:
    """Hue in degrees, saturation and value in 0..1 of the median pixel inside the object."""
    inside = cv2.erode(thing.mask_HW, np.ones((3, 3), np.uint8)) > 0
    r, g, b = np.median(scene.image_HW3[inside], axis=0) / 255
    hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
    return 360 * hue, saturation, value


def test_every_object_stands_out_from_the_background(drawn: list[Scene]) -> None:
    for scene in drawn:
        background = np.median(scene.image_HW3[scene.instance_HW < 0], axis=0)
        for thing in scene.objects:
            assert np.abs(np.median(scene.image_HW3[thing.mask_HW > 0], axis=0) - background).max() > 40


def test_objects_of_one_colour_do_not_touch(drawn: list[Scene]) -> None:
    for scene in drawn:
        for a, b in combinations(scene.objects, 2):
            if a.colour == b.colour:
                assert not (cv2.dilate(a.mask_HW, np.ones((3, 3), np.uint8)) & b.mask_HW).any()


def test_sizes_are_far_apart(drawn: list[Scene]) -> None:
    extents: dict[str, list[float]] = {"small": [], "large": []}
    for scene in drawn:
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            extents[thing.size_name].append(max(x1 - x0, y1 - y0) / min(scene.instance_HW.shape))
    assert max(extents["small"]) < 0.27
    assert np.percentile(extents["large"], 1) > 0.27


def test_default_sizes_and_counts(drawn: list[Scene]) -> None:
    for scene in drawn:
        short, long = sorted(scene.image_HW3.shape[:2])
        assert 112 <= short <= 120
        assert short <= long <= 1.4 * short
        assert 1 <= len(scene.objects) <= 6
    assert {len(scene.objects) for scene in drawn} >= {2, 3, 4, 5, 6}
    assert {np.sign(s.image_HW3.shape[0] - s.image_HW3.shape[1]) for s in drawn} >= {-1, 1}


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (32, 32), (40, 600), (200, None), (None, 33)])
def test_any_size_can_be_asked_for(height: int | None, width: int | None) -> None:
    scene = make_scene(3, height=height, width=width, n_objects=(3, 3))
    drawn_height, drawn_width = scene.image_HW3.shape[:2]
    assert (height or drawn_height, width or drawn_width) == (drawn_height, drawn_width) == scene.instance_HW.shape
    if None in (height, width):
        assert max(drawn_height, drawn_width) <= 1.45 * min(drawn_height, drawn_width)
    assert all(thing.mask_HW.sum() > 4 for thing in scene.objects)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="width 31 is under 32"):
        make_scene(0, height=100, width=31)
    with pytest.raises(ValueError, match=r"n_objects \(3, 2\)"):
        make_scene(0, n_objects=(3, 2))


def test_an_empty_scene_has_no_expressions() -> None:
    scene = make_scene(0, n_objects=(0, 0))
    assert (scene.objects, expressions(scene, 0), pick_expressions(scene, 0, 3)) == ((), [], [])


def test_every_expression_singles_out_its_target(drawn: list[Scene]) -> None:
    for seed, scene in zip(SEEDS, drawn, strict=True):
        found = expressions(scene, seed)
        assert len({e.text for e in found}) == len(found)
        for expression in found:
            assert meant(scene, expression.text) == expression.target, (seed, expression)


def meant(scene: Scene, text: str) -> int | None:
    """The one object that a text names, or None where there is none, several, or too close a call."""
    words = [word for word in text.split() if word not in ("the", "on", "at", "from")]
    sides = {"left": (1, 1), "right": (1, -1), "top": (0, 1), "bottom": (0, -1)}
    side = rank = None
    asked: dict[str, str] = {}
    for word in words:
        if word.removesuffix("most") in sides:
            side = word.removesuffix("most")
        elif word in ORDINALS:
            rank = ORDINALS.index(word)
        elif word not in ("object", "shape"):
            asked["colour" if word in COLOURS else "shape" if word in SHAPES else "size_name"] = word
    group = [index for index, o in enumerate(scene.objects) if all(getattr(o, name) == word for name, word in asked.items())]
    if side is None:
        return group[0] if len(group) == 1 else None
    axis, sign = sides[side]
    line = sorted((sign * middle(scene, index, axis), index) for index in group)
    rank = rank or 0
    near = [abs(line[rank][0] - place) for place, index in line if index != line[rank][1]]
    return line[rank][1] if min(near) >= MIN_GAP - 1e-9 else None


def middle(scene: Scene, index: int, axis: int) -> float:
    """Middle of what is visible of an object along an axis, unit of image."""
    places = np.nonzero(scene.instance_HW == index)[axis]
    return (places.min() + places.max() + 1) / 2 / scene.instance_HW.shape[axis]


def test_every_word_is_used_and_no_other(drawn: list[Scene]) -> None:
    used = {word for seed, scene in zip(SEEDS, drawn, strict=True) for e in expressions(scene, seed) for word in e.text.split()}
    assert used == set(VOCABULARY) - SPARE_WORDS
    assert {*SHAPES, *COLOURS, *SIZES, *ORDINALS, "left", "right", "top", "bottom"} <= used
    assert list(VOCABULARY) == sorted({word.lower() for word in VOCABULARY})


def test_articles_come_and_go_for_every_object(drawn: list[Scene]) -> None:
    """No length of a phrase or depth of an object may be told from its article."""
    seen: dict[tuple[int, int], set[bool]] = {}
    for seed, scene in zip(SEEDS, drawn, strict=True):
        for e in expressions(scene, seed):
            if e.kind == "attribute":
                phrase = e.text.removeprefix("the ")
                seen.setdefault((e.target, len(phrase)), set()).add(e.text != phrase)
    often = [articles for (target, length), articles in seen.items() if target < 2 and 10 <= length <= 13]
    assert often
    assert all(articles == {True, False} for articles in often)


def test_picked_expressions_are_balanced_over_kinds_and_targets(drawn: list[Scene]) -> None:
    kinds: Counter[str] = Counter()
    for seed, scene in zip(SEEDS, drawn, strict=True):
        picked = pick_expressions(scene, seed, 4)
        assert len(picked) == len(set(picked)) == 4
        assert set(picked) <= set(expressions(scene, seed))
        kinds.update(e.kind for e in picked)
        assert len({e.target for e in picked}) >= min(2, len(scene.objects))
    share = {kind: count / kinds.total() for kind, count in kinds.items()}
    assert share == {"attribute": pytest.approx(0.45, abs=0.07), "position": pytest.approx(0.35, abs=0.07),
                     "ordinal": pytest.approx(0.2, abs=0.07)}  # fmt: skip


def test_a_single_pick_is_as_likely_any_object() -> None:
    """Asked for one expression, as `wordmask scenes` does, the object at the back is not favoured."""
    picks = [(make_scene(seed, n_objects=(3, 3)), seed) for seed in SEEDS]
    targets = Counter(pick_expressions(scene, seed, 1)[0].target for scene, seed in picks)
    assert all(targets[target] > len(SEEDS) * 0.2 for target in range(3))


def test_words_for_one_attribute_are_often_not_enough(drawn: list[Scene]) -> None:
    """In many scenes several objects share a shape or a colour, so that place or size has to tell them apart."""
    shared_shape = [max(Counter(o.shape for o in s.objects).values()) >= 2 for s in drawn]
    shared_colour = [max(Counter(o.colour for o in s.objects).values()) >= 2 for s in drawn]
    assert np.mean(shared_shape) > 0.4
    assert np.mean(shared_colour) > 0.4
    plain = [sum((o.shape, o.colour) == (t.shape, t.colour) for o in s.objects) > 1 for s in drawn for t in s.objects]
    assert np.mean(plain) > 0.1
