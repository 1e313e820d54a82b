"""Stage 2 of the paper: reinforcement learning on mask quality.

How to run it, and where it departs from the paper: docs/training.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wordmask.model.decoding.requests import Decoded
from wordmask.model.hub.registry import TOKENIZER_FILE, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import TRAIN_SEEDS, VAL_SEEDS
from wordmask.model.train.loop import (
    OnProgress,
    Stage,
    ignore_progress,
    resume,
    run_stage,
    update_weights,
    warmup_cosine,
)
from wordmask.model.train.lora import (
    adapters_disabled,
    add_lora,
    load_trainable_state_dict,
    trainable_state_dict,
)
from wordmask.model.train.processes import process_rank
from wordmask.model.train.rl.config import RlSettings
from wordmask.model.train.rl.losses import Minibatch, action_log_probs, advantages, policy_loss
from wordmask.model.train.rl.packing import pack
from wordmask.model.train.rl.rewards import Reward, mean_pairwise_iou, reward
from wordmask.model.train.rl.rollouts import (
    Policy,
    ScenePrompt,
    generate_rollouts,
    make_prompts,
)

ADAM_BETAS = (0.9, 0.98)
# What the noise of the gradients has added up is forgotten again while the rate falls.
LAST_FLOOR = 0.02


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts of a step, and its random numbers from there on."""

    prompts: Sequence[ScenePrompt]
    rng: np.random.Generator


class RlStage(Stage[PromptBatch]):
    """A run of reinforcement learning.

    A checkpoint holds the weights that learn, and the revision of the supervised model `init`.
    """

    log_every = 1
    metrics = (
        "reward",
        "iou",
        "best_iou",
        "box_iou",
        "path_tokens",
        "absent",
        "truncated",
        "distinct",
        "pairwise_iou",
        "kl",
        "clipped",
        "entropy",
        "grad_norm",
        "eval_reward",
        "eval_iou",
    )

    def __init__(
        self,
        settings: RlSettings,
        init: str,
        revision: str,
        model: MoondreamSegmentation,
        policy: Policy,
        reference: Policy,
    ) -> None:
        self.settings: RlSettings = settings
        self.init = init
        self.revision = revision
        self.model = model
        self.policy = policy
        self.reference = reference
        self.scenes = SceneDataset(settings.scenes, side=model.config.vision.crop_size)
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=ADAM_BETAS,
            weight_decay=settings.weight_decay,
        )

    def phases(self) -> list[tuple[str, int]]:
        return [("rl", self.settings.steps)]

    def batches(self, steps: range) -> Iterable[PromptBatch]:
        settings = self.settings
        for step in steps:
            rng = np.random.default_rng((settings.seed, step, 17, process_rank()))
            seeds = rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop, settings.questions)
            prompts = make_prompts(self.policy, self.scenes, seeds.tolist())
            yield PromptBatch(prompts=prompts, rng=rng)

    def learning_rate(self, step: int) -> float:
        settings = self.settings
        return warmup_cosine(
            step,
            peak=settings.learning_rate,
            steps=settings.steps,
            warmup=settings.warmup,
            floor=LAST_FLOOR,
        )

    def train_step(self, batch: PromptBatch) -> dict[str, float]:
        """Learn from a batch; evaluate before the first step, at times, and at the end."""
        done = self.step + 1
        is_first_process = process_rank() == 0
        evaluated: dict[str, float] = {}
        if is_first_process and self.step == 0:
            evaluated = evaluate(self.policy, self.validation_prompts)
        metrics = learn(self, batch.prompts, batch.rng)
        is_due = done % self.settings.eval_every == 0 or done == self.settings.steps
        if is_first_process and is_due:
            evaluated = evaluate(self.policy, self.validation_prompts)
        return metrics | evaluated

    @cached_property
    def validation_prompts(self) -> list[ScenePrompt]:
        """Prompts of scenes that no step trains on."""
        scenes = replace(self.scenes, split="val")
        seeds = range(VAL_SEEDS.start, VAL_SEEDS.start + self.settings.eval_scenes)
        return make_prompts(self.policy, scenes, seeds)

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": "rl",
            "init": self.revision,
            "adapted": self.init if self.settings.lora_rank else None,
            "lora_rank": self.settings.lora_rank,
            "model": trainable_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved["init"] != self.revision:
            raise ValueError(
                f"the run started from revision {saved['init']}, not {self.revision}; give"
                " --init the same model"
            )
        load_trainable_state_dict(self.model, saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


def new_stage(settings: RlSettings, init: str, device: torch.device | str = "cpu") -> RlStage:
    """Return the model `init`, before its first step."""
    source = resolve_model(init)
    model = load_model(source, device=device).requires_grad_(False)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank)
    else:
        model.model.text.requires_grad_()
        model.model.region.requires_grad_()
    model.config.tokens = replace(model.config.tokens, max_new_tokens=settings.max_tokens)
    policy = Policy.of(model, load_tokenizer(source), settings.temperature)
    reference = policy
    if not settings.lora_rank:
        frozen = load_model(source, device=device).requires_grad_(False)
        reference = replace(policy, model=frozen.model)
    return RlStage(settings, init, source.revision, model, policy, reference)


def learn(
    stage: RlStage, prompts: Sequence[ScenePrompt], rng: np.random.Generator
) -> dict[str, float]:
    """Answer prompts at random, reward the answers, and learn from them; return the metrics."""
    settings, policy = stage.settings, stage.policy
    seed = int(rng.integers(2**62))
    rollouts = generate_rollouts(policy, prompts, settings.rollouts, seed)
    rewards = [
        [reward(rollout, prompt.truth_HW, policy.tokenizer) for rollout in group]
        for prompt, group in zip(prompts, rollouts, strict=True)
    ]
    values_IG = torch.tensor([[one.value for one in group] for group in rewards])
    minibatches = _minibatches(stage, prompts, rollouts, advantages(values_IG))
    updates = []
    for _ in range(settings.epochs):
        for index in rng.permutation(len(minibatches)):
            loss, metrics = policy_loss(policy, minibatches[index], settings)
            grad_norm = update_weights(stage.optimizer, loss)
            updates.append(metrics | {"grad_norm": grad_norm})
    means = {name: _mean([update[name] for update in updates]) for name in updates[0]}
    return _rollout_metrics(rewards, rollouts) | means


@torch.no_grad()
def _minibatches(
    stage: RlStage,
    prompts: Sequence[ScenePrompt],
    rollouts: list[list[Decoded]],
    advantage_IG: torch.Tensor,
) -> list[Minibatch]:
    """Pack the rollouts to learn from, with the log-probabilities before the first update."""
    settings = stage.settings
    most = advantage_IG.abs().topk(settings.learned, dim=1)
    chosen_IL = most.indices.sort(dim=1).values
    chosen = [
        [group[g] for g in indices]
        for group, indices in zip(rollouts, chosen_IL.tolist(), strict=True)
    ]
    advantage_IL = advantage_IG.gather(1, chosen_IL).to(stage.model.device)
    is_single_update = settings.epochs == 1 and len(prompts) <= settings.part
    minibatches = []
    for start in range(0, len(prompts), settings.part):
        span = slice(start, start + settings.part)
        packed = pack(stage.policy, prompts[span], chosen[span])
        with adapters_disabled(stage.model):
            ref_log_probs = action_log_probs(stage.reference, packed).log_probs_A
        old_log_probs = None
        if not is_single_update:
            old_log_probs = action_log_probs(stage.policy, packed).log_probs_A
        minibatch = Minibatch(
            packed=packed,
            advantage_A=advantage_IL[span].flatten()[packed.rollout_A],
            old_log_probs_A=old_log_probs,
            ref_log_probs_A=ref_log_probs,
        )
        minibatches.append(minibatch)
    return minibatches


def _rollout_metrics(
    rewards: list[list[Reward]], rollouts: list[list[Decoded]]
) -> dict[str, float]:
    all_rewards = [one for group in rewards for one in group]
    all_rollouts = [rollout for group in rollouts for rollout in group]
    best_ious = [max(one.iou for one in group) for group in rewards]
    alike = [mean_pairwise_iou([one.mask_HW for one in group]) for group in rewards]
    return {
        "reward": _mean([one.value for one in all_rewards]),
        "iou": _mean([one.iou for one in all_rewards]),
        "best_iou": _mean(best_ious),
        "box_iou": _mean([one.box_iou for one in all_rewards]),
        "path_tokens": _mean([len(rollout.ids) for rollout in all_rollouts]),
        "absent": _mean([rollout.absent for rollout in all_rollouts]),
        "truncated": _mean([rollout.truncated for rollout in all_rollouts]),
        "distinct": _mean([len({*group}) / len(group) for group in rollouts]),
        "pairwise_iou": _mean(alike),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def evaluate(policy: Policy, prompts: Sequence[ScenePrompt]) -> dict[str, float]:
    """Return the mean reward and IoU of greedy answers, by what their paths alone fill."""
    answers = generate_rollouts(replace(policy, temperature=0.0), prompts, 1, 0)
    rewards = [
        reward(answer, prompt.truth_HW, policy.tokenizer)
        for prompt, (answer,) in zip(prompts, answers, strict=True)
    ]
    return {
        "eval_reward": _mean([one.value for one in rewards]),
        "eval_iou": _mean([one.iou for one in rewards]),
    }


def train(
    out: Path,
    settings: RlSettings,
    init: str,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = ignore_progress,
) -> RlStage:
    """Train the model `init` to the last step, from the checkpoint in `out` if there is one."""
    out.mkdir(parents=True, exist_ok=True)
    stage = new_stage(settings, init, device)
    resume(stage, out)
    stage.policy.tokenizer.save(out / TOKENIZER_FILE)
    run_stage(stage, out, on_progress)
    return stage
