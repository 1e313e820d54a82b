"""Scenes and their expressions, checked against the pixels by slow, obvious means."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import combinations

import cv2
import numpy as np
import pytest

from tests.support.folders import ROOT
from tests.support.meaning import meant, world_of
from wordmask.model.scenes.canvas import MIN_VISIBLE, Piece, Scene
from wordmask.model.scenes.colours import BOXES, COLOUR_NAMES, colour_table, colours_of
from wordmask.model.scenes.compose import make_scene
from wordmask.model.scenes.cutouts import Shadows
from wordmask.model.scenes.expressions import (
    ABSENT_SHARE,
    KIND_SHARES,
    Expression,
    all_expressions,
    sample_expressions,
)
from wordmask.model.scenes.nouns import alike
from wordmask.model.scenes.shapes import COLOURS, OUTLINES, SHAPES, cut_shape, shape_rgb
from wordmask.model.scenes.splits import SPLITS, TEST_SEEDS, TRAIN_SEEDS, TRAIN_TEMPLATES, VAL_SEEDS
from wordmask.model.scenes.sprites import HELD_OUT_STYLE, TRAIN_STYLES, load_shipped
from wordmask.model.scenes.templates import HELD_OUT_TEMPLATES, TEMPLATES

SPRITES = load_shipped()
NOUNS = SPRITES.nouns
SEEDS = range(120)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [make_scene(seed, sprites=SPRITES) for seed in SEEDS]


@pytest.fixture(scope="module")
def said(drawn: list[Scene]) -> list[list[Expression]]:
    return [all_expressions(scene, nouns=NOUNS) for scene in drawn]


def test_everything_is_a_function_of_the_seed(drawn: list[Scene]) -> None:
    for seed, scene in zip(SEEDS[:15], drawn, strict=False):
        again = make_scene(seed, sprites=SPRITES)
        assert np.array_equal(scene.image_HW3, again.image_HW3)
        assert np.array_equal(scene.instance_HW, again.instance_HW)
        assert sample_expressions(scene, seed, 5, nouns=NOUNS) == sample_expressions(
            again, seed, 5, nouns=NOUNS
        )
    assert len({scene.image_HW3.tobytes() for scene in drawn}) == len(drawn)


def test_expressions_are_the_same_in_every_process() -> None:
    """Python orders a set of words otherwise in each process, unless it is told not to."""
    code = """
from tests.model.scenes.test_scenes import NOUNS, SPRITES, all_expressions, make_scene
scene = make_scene(108, sprites=SPRITES, n_objects=(5, 9))
print([expression.text for expression in all_expressions(scene, nouns=NOUNS)])
"""
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert texts[0]
    assert texts[0] == texts[1]


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


def test_masks_part_the_instance_map_and_boxes_are_tight(drawn: list[Scene]) -> None:
    for scene in drawn:
        assert_masks_part_the_instance_map(scene)


def test_masks_are_what_later_objects_leave_of_the_painted_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    painted: list[Piece] = []
    cast = Shadows.cast

    def watched(self: Shadows, image_3HW: np.ndarray, piece: Piece) -> None:
        painted.append(piece)
        cast(self, image_3HW, piece)

    monkeypatch.setattr(Shadows, "cast", watched)
    occluded = holes = 0
    for seed in SEEDS:
        painted.clear()
        scene = make_scene(seed, sprites=SPRITES)
        alone = [np.zeros(scene.instance_HW.shape, bool) for _ in painted]
        for cover, piece in zip(alone, painted, strict=True):
            piece.window(cover)[:] = piece.alpha_hw > 0.5
        for index, thing in enumerate(scene.objects):
            left = alone[index] & ~np.any([np.zeros_like(alone[0]), *alone[index + 1 :]], axis=0)
            assert np.array_equal(thing.mask_HW > 0, left)
            assert left.sum() >= MIN_VISIBLE * alone[index].sum()
            occluded += int(left.sum() < alone[index].sum())
            _, tree = cv2.findContours(
                np.pad(thing.mask_HW, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )
            holes += int((tree[0, :, 3] >= 0).any())
    assert occluded > 20
    assert holes > 20, "artwork with holes keeps them"


def test_names_are_of_the_library_or_of_shapes_and_never_alike(drawn: list[Scene]) -> None:
    counts = Counter(thing.name in SHAPES for scene in drawn for thing in scene.objects)
    assert 0.1 < counts[True] / counts.total() < 0.35
    for scene in drawn:
        names = {thing.name for thing in scene.objects}
        assert names <= {*NOUNS, *SHAPES}
        assert not any(alike(a, b) for a, b in combinations(names, 2))
        assert all((thing.style is None) == (thing.name in SHAPES) for thing in scene.objects)
    assert {thing.style for scene in drawn for thing in scene.objects} == {
        None,
        "noto",
        "noto-v1",
        "twemoji",
    }


def test_counts_twins_and_sizes(drawn: list[Scene]) -> None:
    assert {len(scene.objects) for scene in drawn} == set(range(1, 8))
    several = [scene for scene in drawn if len(scene.objects) > 2]
    assert np.mean([len({o.name for o in s.objects}) < len(s.objects) for s in several]) > 0.6
    sides = [
        max(o.box[2] - o.box[0], o.box[3] - o.box[1]) / min(s.instance_HW.shape)
        for s in drawn
        for o in s.objects
    ]
    assert min(sides) > 0.12
    assert max(sides) < 0.7
    assert {o.size_name for s in drawn for o in s.objects} == {"small", "medium", "large"}
    twins = [(a, b) for s in drawn for a, b in combinations(s.objects, 2) if a.name == b.name]
    assert np.mean([a.style != b.style for a, b in twins]) > 0.3
    assert np.mean([a.colour != b.colour for a, b in twins]) > 0.3


def test_a_colour_is_the_name_of_at_least_half_of_what_is_seen(drawn: list[Scene]) -> None:
    for scene in drawn[:40]:
        for thing, slow in zip(scene.objects, world_of(scene).things, strict=True):
            if thing.colour:
                assert slow.shares[thing.colour] > 0.45
                assert thing.colour in thing.possible_colours
            for colour in {*COLOUR_NAMES} - thing.possible_colours:
                assert slow.shares[colour] < 0.25
    share = np.mean([o.colour is not None for s in drawn for o in s.objects])
    assert 0.4 < share < 0.9


def test_colour_names_do_not_overlap_and_know_what_shapes_are_painted() -> None:
    right, possible = colour_table()
    assert set(np.unique(right)) == set(range(len(BOXES) + 1))
    assert ((possible >> np.maximum(right.astype(np.uint16), 1) - 1 & 1) == 1)[right > 0].all()
    rng = np.random.default_rng(0)
    for colour in COLOURS:
        for _ in range(30):
            assert colours_of(np.tile(shape_rgb(rng, colour), (5, 1)).astype(np.uint8))[0] == colour
    assert colours_of(np.array([[128, 128, 128], [255, 0, 0], [10, 90, 200]], np.uint8))[0] is None


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (640, 480), (32, 32), (40, 600), (200, None), (None, 33)]
)
def test_any_size_can_be_asked_for(height: int | None, width: int | None) -> None:
    scene = make_scene(3, height=height, width=width, sprites=SPRITES, n_objects=(3, 3))
    drawn_height, drawn_width = scene.image_HW3.shape[:2]
    assert (
        (height or drawn_height, width or drawn_width)
        == (drawn_height, drawn_width)
        == scene.instance_HW.shape
    )
    if None in (height, width):
        assert max(drawn_height, drawn_width) <= 1.45 * min(drawn_height, drawn_width)
    assert all(thing.mask_HW.sum() > 4 for thing in scene.objects)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="width 31 is under 32"):
        make_scene(0, sprites=SPRITES, height=100, width=31)
    with pytest.raises(ValueError, match=r"n_objects \(3, 2\)"):
        make_scene(0, sprites=SPRITES, n_objects=(3, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [28.0, 60.0])
def test_coverage_of_a_shape_is_the_area_of_its_outline(shape: str, radius: float) -> None:
    alpha = cut_shape(np.random.default_rng(5), shape, radius, (300, 400))
    x, y = radius * OUTLINES[shape].T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert alpha.sum() == pytest.approx(area, rel=0.03)
    assert (alpha > 0.5).sum() == pytest.approx(area, rel=0.04)


def test_an_empty_scene_has_only_what_is_absent() -> None:
    scene = make_scene(0, sprites=SPRITES, n_objects=(0, 0))
    assert scene.objects == ()
    assert {e.kind for e in all_expressions(scene, nouns=NOUNS)} == {"absent"}
    assert sample_expressions(scene, 0, 3, nouns=NOUNS, absent=0.0) == []


def test_every_expression_means_its_target_and_nothing_else(
    drawn: list[Scene], said: list[list[Expression]]
) -> None:
    for seed, (scene, found) in enumerate(zip(drawn, said, strict=True)):
        world = world_of(scene)
        for e in found[::5]:
            assert meant(world, e.text) == (set() if e.target is None else {e.target}), (seed, e)


def test_no_expression_is_a_close_call(drawn: list[Scene], said: list[list[Expression]]) -> None:
    """Every expression still means the same when all objects move and change size a little."""
    for seed, (scene, found) in enumerate(zip(drawn, said, strict=True)):
        world = world_of(scene).shaken(np.random.default_rng(seed), move=0.014, grow=0.12)
        for e in found[::7]:
            if e.template not in ("between", "middle"):
                assert meant(world, e.text) == (set() if e.target is None else {e.target}), (
                    seed,
                    e,
                )


def test_every_template_is_used_and_texts_differ(said: list[list[Expression]]) -> None:
    assert {e.template for found in said for e in found} == {*TEMPLATES}
    assert len(TEMPLATES) >= 20
    for found in said:
        assert len({e.text for e in found}) == len(found)
        assert all(
            (e.target is None) == (e.kind == "absent") == e.template.startswith("absent")
            for e in found
        )
        assert all(e.kind == TEMPLATES[e.template].kind for e in found)


def test_picked_expressions_are_among_all_and_balanced(
    drawn: list[Scene], said: list[list[Expression]]
) -> None:
    kinds: Counter[str] = Counter()
    for seed, (scene, found) in enumerate(zip(drawn, said, strict=True)):
        picked = sample_expressions(scene, seed, 3, nouns=NOUNS)
        texts = {e.text: e.target for e in found}
        assert len({e.text for e in picked}) == len(picked) == 3
        for e in picked:
            whole = e.text if e.text.startswith("the ") else f"the {e.text}"
            assert texts[whole] == e.target
        if len(scene.objects) > 2:
            kinds.update(e.kind for e in picked)
    assert kinds["absent"] / kinds.total() == pytest.approx(ABSENT_SHARE, abs=0.05)
    assert all(kinds[kind] > 0.03 * kinds.total() for kind in KIND_SHARES)


def test_what_is_absent_can_be_left_out_or_asked_for(drawn: list[Scene]) -> None:
    full = [scene for scene in drawn if len(scene.objects) > 3]
    none = [
        e
        for seed, scene in enumerate(full)
        for e in sample_expressions(scene, seed, 3, nouns=NOUNS, absent=0.0)
    ]
    every = [
        e
        for seed, scene in enumerate(full)
        for e in sample_expressions(scene, seed, 3, nouns=NOUNS, absent=1.0)
    ]
    assert none
    assert all(e.target is not None for e in none)
    assert every
    assert all(e.target is None for e in every)


def test_splits_share_no_seed_and_hold_out_a_style_and_templates() -> None:
    assert set(SPLITS) == {"train", "val", "test", "test-style", "test-relation"}
    for a, b in combinations(SPLITS.values(), 2):
        assert max(a.seeds.start, b.seeds.start) >= min(a.seeds.stop, b.seeds.stop)
    for name in ("train", "val", "test", "test-relation"):
        assert SPLITS[name].styles == TRAIN_STYLES
        assert HELD_OUT_STYLE not in SPLITS[name].styles
    assert SPLITS["test-style"].styles == (HELD_OUT_STYLE,)
    for name in ("train", "val", "test", "test-style"):
        assert SPLITS[name].templates == TRAIN_TEMPLATES
        assert not {*SPLITS[name].templates} & {*HELD_OUT_TEMPLATES}
    assert SPLITS["test-relation"].templates == HELD_OUT_TEMPLATES
    assert {TEMPLATES[name].kind for name in HELD_OUT_TEMPLATES} == {"relation"}


def test_a_held_out_style_is_drawn_alone() -> None:
    held = SPRITES.only(SPLITS["test-style"].styles)
    scenes = [
        make_scene(SPLITS["test-style"].seeds.start + number, sprites=held) for number in range(15)
    ]
    assert {thing.style for scene in scenes for thing in scene.objects} == {None, HELD_OUT_STYLE}


def test_held_out_templates_say_nothing_new_but_their_making(said: list[list[Expression]]) -> None:
    """Every word of a held-out expression is one that training says too."""
    words = {
        held: {
            w
            for found in said
            for e in found
            if (e.template in HELD_OUT_TEMPLATES) == held
            for w in e.text.split()
        }
        for held in (0, 1)
    }
    assert words[1] <= words[0]


def test_train_validation_and_test_seeds_share_none() -> None:
    for a, b in combinations((TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS), 2):
        assert max(a.start, b.start) >= min(a.stop, b.stop)
    assert len(TRAIN_SEEDS) == 10**8
