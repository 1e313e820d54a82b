"""Rollouts: the same question answered many times at random, and the log-probability of every
choice made in them.

The choices of a rollout are whether the thing is there, the bins of its box (x, y, width, height),
and the tokens of its path with the end token. Their log-probabilities are recomputed in one
teacher-forced pass, as the sampler has them: at its temperature, and among the tokens that the path
grammar allowed.

Shapes: I questions, G rollouts of each, P image tokens, D width, S positions of a packed row, N
packed choices of one kind, A choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import PathGrammar
from wordmask.model.decoding.prompt import Prompt, build_prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.sampler import GumbelSampler
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.config import BOX_TOKENS, MoondreamSegmentationConfig, TokenConfig
from wordmask.model.nn.image_crops import crop_image, normalise
from wordmask.model.nn.moondream import Moondream, MoondreamSegmentation
from wordmask.model.nn.region import coord_bin, size_bin
from wordmask.model.scenes.dataset import SceneDataset

PREFIX, PADDING = -1, -2  # owners of a packed row's positions that belong to no rollout


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of one image (pixels, and what the decoder sees of it), and its true answer:
    uint8 of 0/1, all 0 if the thing is absent."""

    image_HW3: np.ndarray
    image_PD: Tensor
    prompt: Prompt
    truth_HW: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model with how it decodes."""

    model: Moondream
    config: MoondreamSegmentationConfig
    tokenizer: PathTokenizer
    grammar: PathGrammar
    temperature: float

    @classmethod
    def of(
        cls, model: MoondreamSegmentation, tokenizer: PathTokenizer, temperature: float
    ) -> Policy:
        """A model under the path grammar."""
        grammar = PathGrammar(tokenizer, model.config.tokens.eos_id, model.device)
        return cls(
            model=model.model,
            config=model.config,
            tokenizer=tokenizer,
            grammar=grammar,
            temperature=temperature,
        )


@torch.no_grad()
def make_prompts(policy: Policy, source: SceneDataset, seeds: Sequence[int]) -> list[Question]:
    """One question about the scene of each seed; a seed whose scene has no expression is left
    out.
    """
    config = policy.config
    scenes = [(scene := source.scene(seed), source.expressions(scene, seed, 1)) for seed in seeds]
    asked = [(scene, picked[0]) for scene, picked in scenes if picked]
    crops = [crop_image(scene.image_HW3, config.vision) for scene, _ in asked]
    pixels = normalise(
        np.concatenate([crop.crops_NHWC for crop in crops]),
        policy.model.text.wte.device,
        policy.model.text.wte.dtype,
    )
    image_IPD = policy.model.vision.project(
        policy.model.vision(pixels).final, [crop.tiling for crop in crops]
    )
    return [
        Question(
            image_HW3=scene.image_HW3,
            image_PD=image_PD,
            prompt=build_prompt(expression.text, (), policy.tokenizer, config.tokens),
            truth_HW=scene.truth(expression.target),
        )
        for image_PD, (scene, expression) in zip(image_IPD, asked, strict=True)
    ]


def generate_rollouts(
    policy: Policy, questions: Sequence[Question], count: int, seed: int
) -> list[list[Decoded]]:
    """`count` rollouts of each question, (I, G). With a temperature of 0 they are the greedy
    answer.
    """
    sampler = GumbelSampler(policy.temperature, seed, policy.model.text.wte.device)
    engine = Engine(
        policy.model,
        policy.config.tokens,
        policy.grammar,
        max_batch_size=max(1, len(questions) * count),
        sampler=sampler,
    )
    asked = (
        (q.image_PD, [((i, g), q.prompt) for g in range(count)]) for i, q in enumerate(questions)
    )
    found = dict(engine.generate(asked))
    return [[found[i, g] for g in range(count)] for i in range(len(questions))]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rollouts laid out for one pass: of each question one row [start, image, prompt | rollout |
    rollout | ...].

    `owner_IS` is the rollout (0..G-1) that a position belongs to, or `PREFIX` or `PADDING`. Choices
    are grouped by kind; `*_at` (N, 2) are the row and the position whose stream a choice is read
    from, and `rollout_A` the rollout (i * G + g) that each choice is part of, in the order of
    `Choices`.
    """

    image_IPD: Tensor
    ids_IS: Tensor
    coords_IS1: Tensor
    sizes_IS2: Tensor
    position_IS: Tensor
    owner_IS: Tensor
    presence_at: Tensor
    presence: Tensor  # (N,) 0: absent, 1: there
    coord_at: Tensor
    coord: Tensor  # (N,) bins
    size_at: Tensor
    size: Tensor  # (N, 2) bins
    path_at: Tensor
    path: Tensor  # (N,) places among the grammar's log-probabilities
    state: Tensor  # (N,) of the grammar
    left: Tensor  # (N,) tokens that may still be written
    rollout_A: Tensor


def pack(
    policy: Policy, questions: Sequence[Question], rollouts: Sequence[Sequence[Decoded]]
) -> Packed:
    """Lay rollouts out. Prompts must hold no spatial references."""
    rows = [_Row(policy, len(question.image_PD), question.prompt) for question in questions]
    for index, (row, drawn) in enumerate(zip(rows, rollouts, strict=True)):
        for number, rollout in enumerate(drawn):
            row.add(rollout, number, at=(index, index * len(drawn) + number))
    length, device = max(len(row.ids) for row in rows), questions[0].image_PD.device
    presence, coord, size, path = (
        torch.tensor(
            [choice for row in rows for choice in row.choices[kind]],
            dtype=torch.long,
            device=device,
        ).view(-1, columns)
        for kind, columns in CHOICES.items()
    )

    def padded(lists: list[list[Any]], value: Any) -> Tensor:
        return torch.tensor(
            [[*one, *[value] * (length - len(one))] for one in lists], device=device
        )

    return Packed(
        image_IPD=torch.stack([question.image_PD for question in questions]),
        ids_IS=padded([row.ids for row in rows], 0),
        position_IS=padded([row.positions for row in rows], 0),
        coords_IS1=padded([row.coords for row in rows], 0.0)[..., None],
        sizes_IS2=padded([row.sizes for row in rows], (0.0, 0.0)),
        owner_IS=padded([row.owners for row in rows], PADDING),
        presence_at=presence[:, :2],
        presence=presence[:, 3],
        coord_at=coord[:, :2],
        coord=coord[:, 3],
        size_at=size[:, :2],
        size=size[:, 3:],
        path_at=path[:, :2],
        path=path[:, 3],
        state=path[:, 4],
        left=path[:, 5],
        rollout_A=torch.cat([part[:, 2] for part in (presence, coord, size, size, path)]),
    )


CHOICES = {
    "presence": 4,
    "coord": 4,
    "size": 5,
    "path": 6,
}  # columns: row, position, rollout, and what was chosen


class _Row:
    """One question and its rollouts, position by position."""

    def __init__(self, policy: Policy, n_image: int, prompt: Prompt) -> None:
        if prompt.regions:
            raise ValueError(
                f"prompt holds {len(prompt.regions)} spatial references: rollouts are packed"
                " without any"
            )
        self._policy, self._tokens = policy, policy.config.tokens
        self.ids = [self._tokens.bos_id, *[0] * n_image, *prompt.ids]
        self._prefix = len(self.ids)
        self.positions = list(range(self._prefix))
        self.owners = [PREFIX] * self._prefix
        self.coords = [0.0] * self._prefix
        self.sizes = [(0.0, 0.0)] * self._prefix
        self.choices: dict[str, list[tuple[int, ...]]] = {kind: [] for kind in CHOICES}

    def add(self, rollout: Decoded, owner: int, at: tuple[int, int]) -> None:
        """Append a rollout; `at` are its row and its number."""
        row, number = at
        region, tokens, grammar = self._policy.config.region, self._tokens, self._policy.grammar
        before, first = (
            self._prefix - 1,
            len(self.ids),
        )  # the prompt's last token, from which two choices are read, and the box's first
        self.choices["presence"].append((row, before, number, int(not rollout.absent)))
        if rollout.absent:
            return
        cx, cy, w, h = rollout.box
        x_bin, y_bin = (round(coord_bin(value, region.coord_out_dim)) for value in (cx, cy))
        self.choices["coord"] += [(row, before, number, x_bin), (row, first, number, y_bin)]
        w_bin, h_bin = (round(size_bin(value, region.size_out_dim // 2)) for value in (w, h))
        self.choices["size"].append((row, first + 1, number, w_bin, h_bin))
        path = [*rollout.ids, tokens.eos_id][
            : tokens.max_new_tokens
        ]  # a path that fills the limit has no end token
        self.choices["path"] += [
            (row, first + BOX_TOKENS - 1 + step, number, place, state, tokens.max_new_tokens - step)
            for step, (place, state) in enumerate(
                zip(grammar.places(path), grammar.states(path), strict=True)
            )
        ]
        drawn = BOX_TOKENS + len(rollout.ids)
        self.ids += [tokens.coord_id, tokens.coord_id, tokens.size_id, *rollout.ids]
        self.coords += [cx, cy, *[0.0] * (drawn - 2)]
        self.sizes += [(0.0, 0.0)] * 2 + [(w, h)] + [(0.0, 0.0)] * len(rollout.ids)
        self.positions += range(self._prefix, self._prefix + drawn)
        self.owners += [owner] * drawn


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Every choice of the rollouts: presence, coordinates, widths, heights, path tokens. `log_p`
    (A,) is its log-probability, `entropy` (A,), without gradient, that of what it was drawn
    from."""

    log_p: Tensor
    entropy: Tensor


def action_log_probs(policy: Policy, packed: Packed) -> Choices:
    """What the policy thinks of the choices made in the rollouts."""
    model, tokens, scale = policy.model, policy.config.tokens, 1 / policy.temperature
    hidden_ISD = _stream(model, tokens, packed)

    def read(at: Tensor) -> Tensor:
        return hidden_ISD[at[:, 0], at[:, 1]]

    there = model.text.logits(read(packed.presence_at))[:, [tokens.eos_id, tokens.coord_id]]
    width, height = model.region.size_logits(read(packed.size_at)).unbind(dim=1)
    path = policy.grammar.log_probs(
        model.text.logits(read(packed.path_at)), packed.state, packed.left, policy.temperature
    )
    drawn_from = [
        (there.mul(scale).log_softmax(-1), packed.presence),
        (
            model.region.coord_logits(read(packed.coord_at)).float().mul(scale).log_softmax(-1),
            packed.coord,
        ),
        (width.float().mul(scale).log_softmax(-1), packed.size[:, 0]),
        (height.float().mul(scale).log_softmax(-1), packed.size[:, 1]),
        (path, packed.path),
    ]
    return Choices(
        log_p=torch.cat([log_p.gather(1, chosen[:, None])[:, 0] for log_p, chosen in drawn_from]),
        entropy=torch.cat([_entropy(log_p.detach()) for log_p, _ in drawn_from]),
    )


def _entropy(log_p_NV: Tensor) -> Tensor:
    return -(log_p_NV.exp() * log_p_NV.clamp(min=torch.finfo(log_p_NV.dtype).min)).sum(
        dim=-1
    )  # what is impossible adds nothing


def _stream(model: Moondream, tokens: TokenConfig, packed: Packed) -> Tensor:
    """The decoder's stream at every position, (I, S, D)."""
    text, region, n_image = model.text, model.region, packed.image_IPD.shape[1]
    x = text.embed(packed.ids_IS)
    drawn = (packed.owner_IS >= 0)[..., None]
    x = torch.where(
        drawn & (packed.ids_IS == tokens.coord_id)[..., None],
        region.encode_coord(packed.coords_IS1).to(x.dtype),
        x,
    )
    x = torch.where(
        drawn & (packed.ids_IS == tokens.size_id)[..., None],
        region.encode_size(packed.sizes_IS2).to(x.dtype),
        x,
    )
    x = torch.cat([x[:, :1], packed.image_IPD.to(x.dtype), x[:, 1 + n_image :]], dim=1)
    return text(
        x, packed.position_IS, packed_mask(packed.owner_IS, packed.position_IS, 1 + n_image)
    )


def packed_mask(owner_IS: Tensor, position_IS: Tensor, image: int) -> Tensor:
    """(I, 1, S, S): a position sees the prefix and its own rollout up to itself; the first `image`
    positions see each other.
    """
    asks, seen = owner_IS[:, :, None], owner_IS[:, None, :]
    later, earlier = position_IS[:, :, None], position_IS[:, None, :]
    ordered = (earlier <= later) | ((earlier < image) & (later < image))
    return (((seen == PREFIX) | (seen == asks)) & ordered)[:, None]
