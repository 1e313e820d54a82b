"""The training stages on a few steps: targets are true, runs are functions of the seed, and go on
where they were stopped.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.training import assert_equal, stop_at, weights
from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.hub.registry import resolve_model
from wordmask.model.loading import load_model
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.train.export import export_model
from wordmask.model.train.loop import average_gradients
from wordmask.model.train.refiner import train as refiner
from wordmask.model.train.refiner.train import RefinerSettings
from wordmask.model.train.sft import train as sft
from wordmask.model.train.sft.data import (
    BY_DISTANCE,
    IGNORE,
    NAMES,
    SIZES,
    SceneBatches,
    attributes_of,
)
from wordmask.model.train.sft.train import Phase, SftSettings
from wordmask.model.train.small_model import small_config, small_tokenizer, trained_model
from wordmask.model.train.targets import path_target

STEPS = 2  # of each phase


def settings(names: tuple[str, ...] = ("vision", "box", "path"), **options: Any) -> SftSettings:
    small = {"steps": STEPS, "images": 1, "queries": 2, "n_objects": (2, 4), "learning_rate": 1e-3}
    phases = tuple(Phase(name=name, **small) for name in names)
    return SftSettings(
        phases=phases, checkpoint_every=1, workers=0, dtype="float32", scenes="shipped", **options
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    sft.train(out, settings())
    return out


def test_a_stopped_run_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = stop_at(3, monkeypatch, sft)  # in the middle of the second phase
    with pytest.raises(KeyboardInterrupt):
        sft.train(tmp_path, settings())
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    heal()
    assert sft.train(tmp_path, settings()).step == 3 * STEPS
    for part in ("model", "weights", "auxiliary"):
        assert_equal(weights(trained, part), weights(tmp_path, part))


def test_a_run_gives_the_running_mean_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = "model.text.wte", []
    real = sft._step

    def watched(state: sft.State, *args: Any) -> Any:
        seen.extend([] if seen else [state.model.state_dict()[name].clone()])
        found = real(state, *args)
        seen.append(state.model.state_dict()[name].clone())
        return found

    monkeypatch.setattr(sft, "_step", watched)
    sft.train(tmp_path, settings(("box",), average=0.15))
    first, second, third = seen
    mean = (
        0.15 * (0.1 * first + 0.9 * second) + 0.85 * third
    )  # it forgets faster than it was told in the first step: 1 of 10
    torch.testing.assert_close(weights(tmp_path, "model")[name], mean)
    assert torch.equal(weights(tmp_path, "weights")[name], third)
    assert torch.equal(
        trained_model(tmp_path).model.state_dict()[name], weights(tmp_path, "model")[name]
    )


def train_together(process: int, folder: Path) -> None:
    """One of two processes that do."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=process, world_size=2
    )
    both, one = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 3))
    both.grad = torch.tensor([1.0, 3.0]) * (process + 1)
    one.grad = (
        torch.ones(1, 3) if process else None
    )  # as of an expert that no token of the other was routed to
    average_gradients([both, one])
    assert torch.equal(both.grad, torch.tensor([1.5, 4.5]))
    assert torch.equal(one.grad, torch.full((1, 3), 0.5))
    state = sft.train(folder / "out", settings(("box",)))
    torch.save(state.model.state_dict(), folder / f"{process}.pt")


def test_processes_that_train_together_share_weights_and_not_scenes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_together, (tmp_path,), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in range(2)
    )
    assert_equal(first, second)
    assert_equal(first, weights(tmp_path / "out", "weights"))
    sft.train(tmp_path / "alone", settings(("box",)))
    assert not torch.equal(
        first["model.text.wte"], weights(tmp_path / "alone", "weights")["model.text.wte"]
    )


def test_another_seed_is_another_run(trained: Path, tmp_path: Path) -> None:
    sft.train(tmp_path, settings(seed=1))
    name = "model.text.wte"
    assert not torch.equal(weights(trained, "model")[name], weights(tmp_path, "model")[name])


def test_a_frozen_encoder_keeps_its_weights_and_the_decoder_learns(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export_model(trained, None, folder)
    sft.train(tmp_path / "run", settings(("box", "path"), freeze_vision=True), init=folder)
    before = load_model(resolve_model(str(folder))).state_dict()
    after = weights(tmp_path / "run", "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("model.vision") for name in changed)
    assert any(name.startswith("model.text") for name in changed)
    with pytest.raises(ValueError, match="phase vision nothing to learn"):
        settings(freeze_vision=True)


def test_losses_are_logged_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "LOG_EVERY", 2)
    phase = Phase(name="vision", steps=2, images=1, queries=1, n_objects=(1, 2), learning_rate=1e-3)
    fast = SftSettings(phases=(phase,), workers=0, scenes="shipped")
    sft.train(tmp_path, fast)
    (row,) = csv.reader((tmp_path / "log.csv").open())
    assert row[:2] == ["vision", "2"]
    assert [cell.split("=")[0] for cell in row[2:]] == ["s_per_step", "patch", "rank", "patch_box"]
    assert all(float(cell.split("=")[1]) > 0 for cell in row[2:])


def test_the_refiner_learns_its_head_only_and_resumes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = RefinerSettings(
        scenes="shipped", steps=4, batch=3, drawn=1, pool_rows=2, checkpoint_every=1, workers=0
    )
    pool = [torch.zeros(2, *shape) for shape in ((120, 120, 3), (120, 120), (120, 120))]
    # An untrained model draws nothing that meets its target, so it would be asked for ever.
    monkeypatch.setattr(refiner, "rollout_pool", lambda *_: [pool[0].to(torch.uint8), *pool[1:]])
    refiner.train(trained, tmp_path / "whole", small)
    heal = stop_at(2, monkeypatch, refiner)
    with pytest.raises(KeyboardInterrupt):
        refiner.train(trained, tmp_path / "halves", small)
    heal()
    refiner.train(trained, tmp_path / "halves", small)
    assert_equal(weights(tmp_path / "whole", "head"), weights(tmp_path / "halves", "head"))
    before = {
        name.removeprefix("head."): value
        for name, value in weights(trained, "model").items()
        if name.startswith("head.")
    }
    assert any(
        not torch.equal(before[name], value)
        for name, value in weights(tmp_path / "whole", "head").items()
    )


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    tokenizer = small_tokenizer()
    options = {
        "config": small_config(tokenizer),
        "tokenizer": tokenizer,
        "questions": SceneDataset("shipped"),
    }
    options |= {"images": 2, "queries": 3, "path_every": 1, "n_objects": (2, 5)}
    whole = SceneBatches(seed=3, steps=range(4), **options)
    resumed = SceneBatches(seed=3, steps=range(2, 4), **options)
    other, elsewhere = (
        SceneBatches(steps=range(4), **own, **options)
        for own in ({"seed": 4}, {"seed": 3, "process": 1})
    )
    assert torch.equal(whole[2].crops, resumed[0].crops)
    assert torch.equal(whole[2].ids, resumed[0].ids)
    assert not torch.equal(whole[2].crops, whole[3].crops)
    for another in (other, elsewhere):
        assert whole[2].crops.shape != another[2].crops.shape or not torch.equal(
            whole[2].crops, another[2].crops
        )


def test_each_name_colour_and_size_is_found_in_an_expression_at_its_last_token() -> None:
    tokenizer = small_tokenizer()
    text = "the tiny grey hot dog left of the dogs"
    gray = (1, 1 + COLOUR_NAMES.index("gray"))
    found = attributes_of(text, tokenizer)
    ends = {
        tokenizer.fast.decode(tokenizer.encode(text)[: place + 1]).strip(): label
        for place, label in found.items()
    }
    assert ends == {
        "the tiny": [(2, 1 + SIZES.index("small"))],
        "the tiny grey": [gray],
        "the tiny grey hot dog": [(0, 1 + NAMES.index("hot dog")), gray],
    }


def test_what_is_absent_is_answered_by_the_end_token_and_has_no_place() -> None:
    tokenizer = small_tokenizer()
    config = small_config(tokenizer)
    batches = SceneBatches(
        config=config,
        tokenizer=tokenizer,
        questions=SceneDataset("shipped"),
        seed=0,
        steps=range(8),
        images=2,
        queries=4,
        path_every=1,
        n_objects=(2, 5),
    )
    seen = 0
    for batch in (batches[step] for step in range(8)):
        first = batch.next_id.gather(2, batch.pointer[..., None])[..., 0]
        absent = batch.target_name == IGNORE
        assert (first[absent] == config.tokens.eos_id).all()
        assert (first[~absent] == config.tokens.coord_id).all()
        assert (batch.next_coord[absent] == -1).all()
        assert (batch.next_size[absent] == -1).all()
        assert (batch.target_share[absent][:, 0] == 1).all()
        assert not batch.target_share[~absent][:, 0].any()
        seen += int(absent.sum())
    assert seen > 0


def test_a_name_has_the_box_of_what_it_fits_where_that_is_one_object() -> None:
    tokenizer = small_tokenizer()
    batch = SceneBatches(
        config=small_config(tokenizer),
        tokenizer=tokenizer,
        questions=SceneDataset("shipped"),
        seed=0,
        steps=range(1),
        images=6,
        queries=6,
        path_every=2,
        n_objects=(3, 6),
    )[0]
    auxiliary = sft.Auxiliary(8, 8)
    for head in (auxiliary.phrase_box, auxiliary.anchor_box):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    expected, anchors, several = [], [], 0
    for image, query in np.ndindex(*batch.ids.shape[:2]):
        tokens = batch.is_phrase[image, query].nonzero()[:, 0].tolist()
        for token in tokens:
            boxes = batch.patch_box[image][batch.phrase_share[image, query, token, 1:] > 0].unique(
                dim=0
            )
            several += len(boxes) > 1
            if len(boxes) == 1:
                expected.append(
                    torch.nn.functional.smooth_l1_loss(boxes[0], torch.zeros(4), beta=0.05).item()
                )
                anchors += expected[-1:] if token == tokens[-1] and len(tokens) > 1 else []
    assert len(expected) > len(anchors) > 2
    assert several > 5
    found = auxiliary.phrase_box_losses(
        torch.zeros(*batch.ids.shape, 8), torch.zeros(*batch.ids.shape[:2], 8), batch
    )
    assert found["phrase_box"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["anchor_box"].item() == pytest.approx(np.mean(anchors), rel=1e-4)


def test_some_expressions_are_by_distance_and_none_is_said_twice() -> None:
    tokenizer = small_tokenizer()
    questions = SceneDataset("shipped")
    batches = SceneBatches(
        config=small_config(tokenizer),
        tokenizer=tokenizer,
        questions=questions,
        seed=0,
        steps=range(1),
        images=1,
        queries=10,
        path_every=2,
        n_objects=(5, 7),
    )
    found = 0
    for seed in range(20):
        expressions = batches._expressions(questions.scene(seed, n_objects=(5, 7)), seed)
        assert len({expression.text for expression in expressions}) == len(expressions) <= 10
        found += sum(expression.template in BY_DISTANCE for expression in expressions)
        assert {expression.kind for expression in expressions} > {"relation"}
    assert found >= 40


def test_targets_of_the_decoder_draw_the_mask() -> None:
    """Well-formed paths, within 16 vertices, that fill to nearly the mask."""
    overlaps = []
    for seed in range(40):
        scene = SceneDataset("shipped").scene(seed)
        for thing in scene.objects:
            tokens = path_target(thing.mask_HW, thing.box)
            path = parse_path(tokens)
            assert path.well_formed, tokens
            assert len(tokens) <= 2 * 16 + 3 * tokens.count("M")
            height, width = thing.mask_HW.shape
            x0, y0, x1, y1 = thing.box
            drawn = rasterize(
                path.path,
                (
                    (x0 + x1) / 2 / width,
                    (y0 + y1) / 2 / height,
                    (x1 - x0) / width,
                    (y1 - y0) / height,
                ),
                height,
                width,
            )
            overlaps.append((drawn & thing.mask_HW).sum() / (drawn | thing.mask_HW).sum())
    assert np.mean(overlaps) > 0.9
    assert np.percentile(overlaps, 5) > 0.6, (
        "a few thin things, as bicycles, take more than the budget of tokens"
    )
