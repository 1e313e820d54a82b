"""Stage 2 of the paper: reinforcement learning on mask quality.

The abstract gives the reason, that many paths fill the same mask and the token loss punishes all
but one, and the cure, to optimise the mask itself. The algorithm, the reward and their numbers are
not in it. What is ours:

- GRPO: each question is answered `rollouts` times at random, and an answer is better or worse than
  the others of its group. No value network. Advantages are differences from the group's mean over
  the standard deviation of the whole step's differences, not of the group's own: that would make
  much of groups that all but agree.
- Everything drawn is sampled and learned: whether the thing is there, the box and the path. Half of
  what a path alone gets wrong is where its box lies.
- Of a group only those rollouts are learned from that are much better or worse than the rest:
  drawing costs less than learning.
- Ratios are clipped (PPO) and the mean runs over choices, so that long paths count for more.
  Log-probabilities are those of the sampler, at its temperature and under the path grammar,
  recomputed in a teacher-forced pass before the first update.
- A penalty on the KL divergence to the supervised model (estimator k3, on the sampled choices)
  keeps the paths what they were.
- The encoder is frozen: a refiner head trained on it stays valid, and an image is encoded once for
  its rollouts and all updates.
- A model too large to learn whole, or to be held twice, learns through LoRA (`--lora-rank`);
  without what it learned it is its own reference.

Run: `python -m wordmask.model.train.rl.train --init demo --out runs/rl` (again with the same --out
to resume), or on N devices or cores, with N times the questions of a step, `torchrun
--nproc-per-node N -m wordmask.model.train.rl.train --init demo --out runs/rl --threads 1`.
`wordmask.model.train.export --sft runs/rl` makes a model folder of it.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from wordmask.model.decoding.requests import Decoded
from wordmask.model.hub.registry import TOKENIZER_FILE, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.runtime.devices import keep_freed_memory
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import TRAIN_SEEDS, VAL_SEEDS
from wordmask.model.train.loop import (
    OnProgress,
    average_gradients,
    ignore_progress,
    join_processes,
    process_rank,
    progress_bar,
    save_checkpoint,
    warmup_cosine,
)
from wordmask.model.train.lora import (
    adapters_disabled,
    add_lora,
    load_trainable_state_dict,
    trainable_state_dict,
)
from wordmask.model.train.rl.rewards import Reward, mean_pairwise_iou, reward
from wordmask.model.train.rl.rollouts import (
    Packed,
    Policy,
    Question,
    action_log_probs,
    generate_rollouts,
    make_prompts,
    pack,
)


@dataclass(frozen=True, kw_only=True)
class RlSettings:
    """`questions` of a step, each about a scene of its own, and `rollouts` of each, of which the
    `learned` that differ most from their mean are learned from: `epochs` times, in parts of `part`
    questions. `clip` bounds the ratios to 1 - clip .. 1 + clip. `max_tokens` of a path are fewer
    than in use, for the few that would not end."""

    seed: int = 0
    scenes: str = "fetched"  # a source of `SceneDataset`
    steps: int = 200
    questions: int = 8
    rollouts: int = 16
    learned: int = 8
    epochs: int = 1
    part: int = 8
    temperature: float = 0.5
    max_tokens: int = 64
    clip: float = 0.2
    kl_weight: float = 0.05
    learning_rate: float = 6e-5
    warmup: int = 10
    weight_decay: float = 0.0
    lora_rank: int = 0  # 0: the decoder learns whole
    eval_every: int = 25
    eval_scenes: int = 200
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        for name, least in (
            ("rollouts", 2),
            ("questions", 1),
            ("epochs", 1),
            ("part", 1),
            ("eval_every", 1),
            ("checkpoint_every", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if not 1 <= self.learned <= self.rollouts:
            raise ValueError(f"learned = {self.learned}: must be 1..{self.rollouts} (rollouts)")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature = {self.temperature}: must be positive, or all rollouts of a question"
                " are the same"
            )


@dataclass
class State:
    """What a checkpoint holds; and the supervised model, of which it holds the revision only."""

    step: int
    init: str
    model: MoondreamSegmentation
    optimizer: torch.optim.Optimizer
    policy: Policy
    reference: Policy
    asks: SceneDataset
    adapted: str | None = None  # name of the model, where it is adapted
    lora_rank: int = 0

    def save(self, path: Path) -> None:
        parts = {
            "model": trainable_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(
            path,
            stage="rl",
            step=self.step,
            init=self.init,
            adapted=self.adapted,
            lora_rank=self.lora_rank,
            **parts,
        )

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        if saved["init"] != self.init:
            raise ValueError(
                f"{path}: the run started from revision {saved['init']}, not {self.init}; give"
                " --init the same model"
            )
        self.step = saved["step"]
        load_trainable_state_dict(self.model, saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


def new_state(settings: RlSettings, init: str, device: torch.device | str = "cpu") -> State:
    """The model `init`, before its first step."""
    source = resolve_model(init)
    model = load_model(source, device=device)
    model.requires_grad_(False)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank)
    else:
        model.model.text.requires_grad_()
        model.model.region.requires_grad_()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    tokenizer = load_tokenizer(source)
    model.config.tokens = replace(model.config.tokens, max_new_tokens=settings.max_tokens)
    policy = Policy.of(model, tokenizer, settings.temperature)
    asks = SceneDataset(settings.scenes, side=model.config.vision.crop_size)
    if settings.lora_rank:
        return State(
            0, source.revision, model, optimizer, policy, policy, asks, init, settings.lora_rank
        )
    reference = replace(policy, model=load_model(source, device=device).requires_grad_(False).model)
    return State(0, source.revision, model, optimizer, policy, reference, asks)


def advantages(values_IG: Tensor) -> Tensor:
    """How much better each rollout is than the others of its question: (I, G), 0 on average over a
    question, of unit spread over all.
    """
    better_IG = values_IG - values_IG.mean(dim=1, keepdim=True)
    return better_IG / (better_IG.square().mean().sqrt() + 1e-4)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Packed rollouts that are learned from together; per choice (A,) the advantage of its rollout,
    and its log-probability as it was drawn and as the supervised model has it. Without the former,
    the weights are still those that drew it."""

    packed: Packed
    advantage: Tensor
    old_log_probs: Tensor | None
    ref_log_probs: Tensor


def _objective(
    policy: Policy, part: _Part, settings: RlSettings
) -> tuple[Tensor, dict[str, float]]:
    """What is to be minimised, and what to log."""
    found = action_log_probs(policy, part.packed)
    ratio = (
        found.log_p - (found.log_p.detach() if part.old_log_probs is None else part.old_log_probs)
    ).exp()
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    gain = torch.minimum(ratio * part.advantage, clipped * part.advantage)
    away = part.ref_log_probs - found.log_p
    kl = away.exp() - away - 1
    held = (clipped * part.advantage < ratio * part.advantage).float().mean()
    log = {"kl": kl.mean().item(), "clipped": held.item(), "entropy": found.entropy.mean().item()}
    return -(gain - settings.kl_weight * kl).mean(), log


@torch.no_grad()
def _parts(
    state: State,
    questions: Sequence[Question],
    drawn: list[list[Decoded]],
    advantage_IG: Tensor,
    settings: RlSettings,
) -> list[_Part]:
    """The rollouts to learn from, with what must be known before the first update."""
    most_IL = advantage_IG.abs().topk(settings.learned, dim=1).indices.sort(dim=1).values
    learned = [
        [group[g] for g in most] for group, most in zip(drawn, most_IL.tolist(), strict=True)
    ]
    most_value_IL = advantage_IG.gather(1, most_IL).to(state.model.device)
    once = settings.epochs == 1 and len(questions) <= settings.part
    parts = []
    for start in range(0, len(questions), settings.part):
        span = slice(start, start + settings.part)
        packed = pack(state.policy, questions[span], learned[span])
        with adapters_disabled(state.model):
            ref_log_probs = action_log_probs(state.reference, packed).log_p
        parts.append(
            _Part(
                packed=packed,
                advantage=most_value_IL[span].flatten()[packed.rollout_A],
                old_log_probs=None if once else action_log_probs(state.policy, packed).log_p,
                ref_log_probs=ref_log_probs,
            )
        )
    return parts


def _step(state: State, settings: RlSettings) -> dict[str, float]:
    """One step: a function of the weights, the seed, the number of the step and that of the process
    alone.
    """
    rng = np.random.default_rng((settings.seed, state.step, 17, process_rank()))
    questions = make_prompts(
        state.policy,
        state.asks,
        rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop, settings.questions).tolist(),
    )
    return learn(state, questions, settings, rng)


def learn(
    state: State, questions: Sequence[Question], settings: RlSettings, rng: np.random.Generator
) -> dict[str, float]:
    """Answer, reward and learn; what to log."""
    drawn = generate_rollouts(state.policy, questions, settings.rollouts, int(rng.integers(2**62)))
    rewards = [
        [reward(row, question.truth_HW, state.policy.tokenizer) for row in group]
        for question, group in zip(questions, drawn, strict=True)
    ]
    values_IG = torch.tensor([[one.value for one in group] for group in rewards])
    parts = _parts(state, questions, drawn, advantages(values_IG), settings)
    logs = []
    for _ in range(settings.epochs):
        for index in rng.permutation(len(parts)):
            loss, log = _objective(state.policy, parts[index], settings)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            trained = [p for group in state.optimizer.param_groups for p in group["params"]]
            average_gradients(trained)
            log["grad_norm"] = nn.utils.clip_grad_norm_(trained, 1.0).item()
            state.optimizer.step()
            logs.append(log)
    return _summary(rewards, drawn) | {
        name: float(np.mean([log[name] for log in logs])) for name in logs[0]
    }


def _summary(rewards: list[list[Reward]], drawn: list[list[Decoded]]) -> dict[str, float]:
    rows, ious = (
        [row for group in drawn for row in group],
        np.array([[one.iou for one in group] for group in rewards]),
    )
    return {
        "reward": float(np.mean([one.value for group in rewards for one in group])),
        "iou": float(ious.mean()),
        "best_iou": float(ious.max(axis=1).mean()),
        "box_iou": float(np.mean([one.box_iou for group in rewards for one in group])),
        "path_tokens": float(np.mean([len(row.ids) for row in rows])),
        "absent": float(np.mean([row.absent for row in rows])),
        "truncated": float(np.mean([row.truncated for row in rows])),
        "distinct": float(np.mean([len(set(group)) / len(group) for group in drawn])),
        "pairwise_iou": float(
            np.mean([mean_pairwise_iou([one.mask_HW for one in group]) for group in rewards])
        ),
    }


NOT_EVALUATED = {"eval_reward": math.nan, "eval_iou": math.nan}


def evaluate(policy: Policy, questions: Sequence[Question]) -> dict[str, float]:
    """Of greedy answers: mean reward and mean IoU of what the path alone fills."""
    drawn = generate_rollouts(replace(policy, temperature=0.0), questions, 1, 0)
    found = [
        reward(row, question.truth_HW, policy.tokenizer)
        for question, (row,) in zip(questions, drawn, strict=True)
    ]
    return {
        "eval_reward": float(np.mean([one.value for one in found])),
        "eval_iou": float(np.mean([one.iou for one in found])),
    }


def learning_rate(step: int, settings: RlSettings) -> float:
    """Linear warm-up, then a cosine to a fiftieth: what the noise of the gradients has added up is
    forgotten again.
    """
    return warmup_cosine(
        step, peak=settings.learning_rate, steps=settings.steps, warmup=settings.warmup, floor=0.02
    )


class Log:
    """A CSV with one row a step; the first one's evaluation is of the model before it. What a
    stopped run wrote after its last checkpoint is dropped when it goes on."""

    def __init__(self, path: Path, after: int) -> None:
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [
                    row
                    for row in csv.reader(file)
                    if row and (not row[0].isdigit() or int(row[0]) <= after)
                ]
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows(kept)
        self._empty = not kept

    def write(self, values: dict[str, float]) -> None:
        if self._empty:
            self._writer.writerow(values)
        self._empty = False
        self._writer.writerow(
            value if isinstance(value, int) else f"{value:.5g}" for value in values.values()
        )
        self._file.flush()


def train(
    out: Path,
    settings: RlSettings,
    init: str,
    device: torch.device | str = "cpu",
    tell: OnProgress = ignore_progress,
) -> State:
    """Train the model `init` (a name that `resolve_model` knows) to the last step, from the
    checkpoint in `out` if there is one.
    """
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    state = new_state(settings, init, device)
    if (out / "last.pt").exists():
        state.load(out / "last.pt")
    state.policy.tokenizer.save(out / TOKENIZER_FILE)
    unseen = make_prompts(
        state.policy,
        replace(state.asks, split="val"),
        range(VAL_SEEDS.start, VAL_SEEDS.start + settings.eval_scenes),
    )
    first = process_rank() == 0
    log = Log(out / "log.csv" if first else Path(os.devnull), state.step)
    for step in _tracked(state.step, settings.steps):
        began = time.perf_counter()
        evaluated = evaluate(state.policy, unseen) if first and step == 0 else {}
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        found = _step(state, settings)
        state.step += 1
        last = state.step == settings.steps
        seconds = time.perf_counter() - began
        if first and (last or state.step % settings.eval_every == 0):
            evaluated = evaluate(state.policy, unseen)
        log.write({"step": state.step, **found, "seconds": seconds, **(evaluated or NOT_EVALUATED)})
        tell("rl", state.step, settings.steps, found | evaluated)
        if first and (last or state.step % settings.checkpoint_every == 0):
            state.save(out / "last.pt")
    return state


def _tracked(first: int, steps: int) -> Iterator[int]:
    with progress_bar(Console(stderr=True, quiet=process_rank() > 0)) as progress:
        task = progress.add_task("rl", total=steps, completed=first)
        for step in range(first, steps):
            yield step
            progress.update(task, advance=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--init",
        required=True,
        help="model to start from, and to stay near: demo, a model folder, or a hub repository",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of checkpoints and log; an existing one is resumed",
    )
    for name, default in asdict(RlSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = RlSettings(**{name: getattr(args, name) for name in asdict(RlSettings())})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "settings.txt").write_text(repr(asdict(settings)))
    train(args.out, settings, args.init, join_processes(args.device))


if __name__ == "__main__":
    main()
