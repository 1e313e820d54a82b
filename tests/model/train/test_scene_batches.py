"""Batches of scenes: functions of seed and step, whose labels are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.train.sft.auxiliary import AuxiliaryHeads
from wordmask.model.train.sft.batch import IGNORE
from wordmask.model.train.sft.config import Phase
from wordmask.model.train.sft.data import DISTANCE_TEMPLATES, SceneBatches
from wordmask.model.train.sft.labels import NAMES, SIZES, attributes_of
from wordmask.model.train.small_model import small_config, small_tokenizer


def scene_batches(
    *, seed: int = 0, steps: range = range(1), process: int = 0, **phase: Any
) -> SceneBatches:
    """Batches of the small model in shipped scenes; `phase` are fields of a `Phase`."""
    tokenizer = small_tokenizer()
    return SceneBatches(
        config=small_config(tokenizer),
        tokenizer=tokenizer,
        scenes=SceneDataset("shipped"),
        phase=Phase(name="path", steps=len(steps), learning_rate=1e-3, **phase),
        steps=steps,
        seed=seed,
        process=process,
    )


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    phase = {"images": 2, "queries": 3, "n_objects": (2, 5)}
    whole = scene_batches(seed=3, steps=range(4), **phase)
    resumed = scene_batches(seed=3, steps=range(2, 4), **phase)
    other = scene_batches(seed=4, steps=range(4), **phase)
    elsewhere = scene_batches(seed=3, steps=range(4), process=1, **phase)
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


def test_what_is_absent_is_answered_by_the_end_token_and_has_no_box() -> None:
    batches = scene_batches(steps=range(8), images=2, queries=4, n_objects=(2, 5))
    tokens = batches.config.tokens
    seen = 0
    for batch in (batches[step] for step in range(8)):
        first = batch.next_id.gather(2, batch.pointer[..., None])[..., 0]
        absent = batch.target_name == IGNORE
        assert (first[absent] == tokens.eos_id).all()
        assert (first[~absent] == tokens.coord_id).all()
        assert (batch.next_coord[absent] == -1).all()
        assert (batch.next_size[absent] == -1).all()
        assert (batch.target_share[absent][:, 0] == 1).all()
        assert not batch.target_share[~absent][:, 0].any()
        seen += int(absent.sum())
    assert seen > 0


def test_a_name_has_the_box_of_what_it_fits_where_that_is_one_object() -> None:
    batch = scene_batches(images=6, queries=6, path_every=2, n_objects=(3, 6))[0]
    auxiliary = AuxiliaryHeads(8, 8)
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
    batches = scene_batches(images=1, queries=10, path_every=2, n_objects=(5, 7))
    scenes = batches.scenes
    found = 0
    for seed in range(20):
        expressions = batches.expressions(scenes.scene(seed, n_objects=(5, 7)), seed)
        assert len({expression.text for expression in expressions}) == len(expressions) <= 10
        found += sum(expression.template in DISTANCE_TEMPLATES for expression in expressions)
        assert {expression.kind for expression in expressions} > {"relation"}
    assert found >= 40
