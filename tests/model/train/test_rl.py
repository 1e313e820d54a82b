"""Reinforcement learning on a few steps: it raises the reward, and resumes exactly."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training import assert_equal, stop_at, weights
from wordmask.model.hub.registry import resolve_model
from wordmask.model.loading import load_model
from wordmask.model.scenes.splits import TRAIN_SEEDS
from wordmask.model.train.export import export_model
from wordmask.model.train.rl import train as rl
from wordmask.model.train.rl.config import RlSettings
from wordmask.model.train.rl.losses import action_log_probs, advantages
from wordmask.model.train.rl.packing import pack
from wordmask.model.train.rl.rollouts import ScenePrompt, generate_rollouts, make_prompts
from wordmask.model.train.rl.train import RlStage, learn, new_stage

SMALL = RlSettings(
    scenes="shipped",
    steps=3,
    questions=2,
    rollouts=4,
    learned=3,
    part=1,
    max_tokens=14,
    eval_scenes=2,
    eval_every=2,
    checkpoint_every=1,
    warmup=1,
)


def changed(**fields: Any) -> RlSettings:
    """Return the settings with some fields changed, validated."""
    return RlSettings.model_validate(SMALL.model_dump() | fields)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rl")
    rl.train(out, SMALL, "demo")
    return out


def test_a_stopped_run_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = stop_at(2, monkeypatch, RlStage)
    with pytest.raises(KeyboardInterrupt):
        rl.train(tmp_path, SMALL, "demo")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2
    heal()
    assert rl.train(tmp_path, SMALL, "demo").step == 3
    assert_equal(weights(trained, "model"), weights(tmp_path, "model"))


def train_together(process: int, folder: Path) -> None:
    """One of two processes that do."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=process, world_size=2
    )
    state = rl.train(folder / "out", changed(steps=1), "demo")
    torch.save(state.model.state_dict(), folder / f"{process}.pt")


def test_processes_that_train_together_share_weights_and_not_questions(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_together, (tmp_path,), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in range(2)
    )
    assert_equal(first, second)
    assert_equal(first, weights(tmp_path / "out", "model"))
    rl.train(tmp_path / "alone", changed(steps=1), "demo")
    name = "model.text.blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], weights(tmp_path / "alone", "model")[name])


def test_another_model_to_stay_near_is_refused(trained: Path, tmp_path: Path) -> None:
    export_model(trained, None, tmp_path)
    with pytest.raises(ValueError, match="give --init the same model"):
        rl.train(trained, SMALL, str(tmp_path))


def test_the_decoder_learns_and_the_encoder_and_the_refiner_do_not(trained: Path) -> None:
    before, after = load_model(resolve_model("demo")).state_dict(), weights(trained, "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.text.", "model.region.")) for name in changed)
    assert {
        "model.text.wte",
        "model.region.coord_decoder.weight",
        "model.region.size_decoder.weight",
    } <= changed


def test_every_step_is_logged(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["eval_iou"] == "nan" for row in rows] == [False] * 3, (
        "before the first step, after two, and at the end"
    )
    assert 0 < float(rows[0]["kl"]) < 0.01 < float(rows[2]["entropy"])
    assert float(rows[0]["distinct"]) == 1.0


def test_a_run_becomes_a_model_folder(trained: Path, tmp_path: Path) -> None:
    export_model(trained, None, tmp_path / "model")
    found, expected = (
        load_model(resolve_model(str(tmp_path / "model"))).state_dict(),
        weights(trained, "model"),
    )
    assert_equal(
        {name: value.bfloat16() for name, value in found.items()},
        {name: value.bfloat16() for name, value in expected.items()},
    )


def test_advantages_compare_within_a_question() -> None:
    """A question whose rollouts agree teaches nothing."""
    found = advantages(torch.tensor([[0.0, 1.0, 0.5, 0.5], [0.9, 0.9, 0.9, 0.9]]))
    assert torch.allclose(
        found, torch.tensor([[-0.5, 0.5, 0, 0], [0, 0, 0, 0]]) / ((0.5 / 8) ** 0.5 + 1e-4)
    )


def absence(stage: RlStage, prompt: ScenePrompt) -> float:
    """Return the probability of "absent"."""
    (rollout,) = generate_rollouts(stage.policy, [prompt], 1, 0)[0]
    absent = replace(rollout, absent=True, ids=())
    with torch.no_grad():
        found = action_log_probs(stage.policy, pack(stage.policy, [prompt], [[absent]]))
    return found.log_probs_A.exp().item()


def test_each_step_makes_the_better_of_two_answers_likelier() -> None:
    """The model doubts whether the thing is there; it is not: "absent" is worth 1, all else 0."""
    settings = changed(
        questions=1,
        rollouts=8,
        learned=8,
        learning_rate=3e-4,
        kl_weight=0.0,
        weight_decay=0.0,
    )
    stage = new_stage(settings, "demo")
    prompt = replace(
        make_prompts(stage.policy, stage.scenes, [TRAIN_SEEDS.start])[0],
        truth_HW=np.zeros((112, 112), np.uint8),
    )
    tokens = stage.policy.config.tokens
    with torch.no_grad():  # as likely as not
        gap = np.log(absence(stage, prompt)) * settings.temperature
        stage.policy.model.text.lm_head.bias[tokens.coord_id] += gap
    rng, before = np.random.default_rng(0), absence(stage, prompt)
    rewards = []
    for _ in range(6):
        rewards.append(learn(stage, [prompt], rng)["reward"])
        after = absence(stage, prompt)
        assert after > before or rewards[-1] in (0.0, 1.0)
        before = after
    assert 0 < rewards[0] < 1
    assert before > 0.9


def test_ratios_are_one_before_the_first_update_and_clipped_later() -> None:
    """With two minibatches the second is learned from with weights that no longer sampled it."""
    settings = changed(learning_rate=2e-4, clip=0.01, epochs=2)
    stage = new_stage(settings, "demo")
    prompts = make_prompts(
        stage.policy, stage.scenes, [TRAIN_SEEDS.start + 1, TRAIN_SEEDS.start + 2]
    )
    stage.settings = changed(learning_rate=2e-4, clip=0.01, epochs=1, part=2)
    assert learn(stage, prompts, np.random.default_rng(0))["clipped"] == 0
    stage.settings = settings
    assert learn(stage, prompts, np.random.default_rng(1))["clipped"] > 0.05


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rollouts": 1}, r"rollouts\n.*greater than or equal to 2"),
        ({"learned": 5}, r"learned = 5: must be 1\.\.4"),
        ({"temperature": 0.0}, r"temperature\n.*greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**wrong)
