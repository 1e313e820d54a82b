"""Log-probabilities of actions, advantages, and the clipped objective.

Log-probabilities are recomputed in one teacher-forced pass, as the sampler has them: at its
temperature, and among the tokens that the path grammar allows.

Shapes: I prompts, G rollouts of each, D width, S positions of a packed row, N actions of one kind,
A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wordmask.model.train.rl.config import RlSettings
from wordmask.model.train.rl.packing import PackedRollouts
from wordmask.model.train.rl.rollouts import Policy
from wordmask.model.train.teacher_forcing import embed_answers, packed_mask


@dataclass(frozen=True, kw_only=True)
class ActionLogProbs:
    """Actions of rollouts: presence, coordinates, widths, heights, path tokens."""

    log_probs_A: Tensor
    entropy_A: Tensor  # of the distribution that each was sampled from, without gradient


def action_log_probs(policy: Policy, packed: PackedRollouts) -> ActionLogProbs:
    """Return the log-probabilities that a policy gives the actions of rollouts."""
    hidden_ISD = _hidden_states(policy, packed)
    distributions = _distributions(policy, packed, hidden_ISD)
    width, height = packed.size.unbind(1)
    taken = (packed.presence, packed.coord, width, height, packed.path)
    log_probs = [
        log_probs_NV.gather(1, action_N[:, None])[:, 0]
        for log_probs_NV, action_N in zip(distributions, taken, strict=True)
    ]
    entropies = [_entropy(log_probs_NV.detach()) for log_probs_NV in distributions]
    return ActionLogProbs(
        log_probs_A=torch.cat(log_probs),
        entropy_A=torch.cat(entropies),
    )


def _distributions(policy: Policy, packed: PackedRollouts, hidden_ISD: Tensor) -> list[Tensor]:
    """Return the log-probabilities (N, V) of all that each action could have been, by kind."""
    text = policy.model.text
    region = policy.model.region
    tokens = policy.config.tokens

    def read(at_N2: Tensor) -> Tensor:
        row, position = at_N2.unbind(1)
        return hidden_ISD[row, position]

    def log_probs(logits_NV: Tensor) -> Tensor:
        scaled = logits_NV.mul(1 / policy.temperature)
        return scaled.log_softmax(-1)

    presence_ids = [tokens.eos_id, tokens.coord_id]
    first_logits = text.logits(read(packed.presence_at))
    presence = first_logits[:, presence_ids]
    size = region.size_logits(read(packed.size_at))
    width, height = size.unbind(dim=1)
    path_logits = text.logits(read(packed.path_at))
    path = policy.grammar.log_probs(path_logits, packed.state, packed.left, policy.temperature)
    coord = region.coord_logits(read(packed.coord_at))
    return [
        log_probs(presence),
        log_probs(coord.float()),
        log_probs(width.float()),
        log_probs(height.float()),
        path,
    ]


def _entropy(log_probs_NV: Tensor) -> Tensor:
    """Return the entropy (N,) of distributions; what is impossible adds nothing."""
    least = torch.finfo(log_probs_NV.dtype).min
    finite = log_probs_NV.clamp(min=least)
    probs = log_probs_NV.exp()
    return -(probs * finite).sum(dim=-1)


def _hidden_states(policy: Policy, packed: PackedRollouts) -> Tensor:
    """Return the decoder's stream at every position, (I, S, D)."""
    tokens = policy.config.tokens
    prefix = 1 + packed.image_IPD.shape[1]
    is_rollout = packed.owner_IS >= 0
    x = embed_answers(
        policy.model, tokens, packed.ids_IS, packed.coords_IS, packed.sizes_IS2, is_rollout
    )
    image = packed.image_IPD.to(x.dtype)
    start = x[:, :1]
    answers = x[:, prefix:]
    stream = torch.cat([start, image, answers], dim=1)
    mask = packed_mask(packed.owner_IS, packed.position_IS, prefix)
    return policy.model.text(stream, packed.position_IS, mask)


def advantages(values_IG: Tensor) -> Tensor:
    """Return how much better each rollout is than the others of its prompt, (I, G).

    Advantages are 0 on average over a prompt, and of unit spread over all.
    """
    mean_I1 = values_IG.mean(dim=1, keepdim=True)
    difference_IG = values_IG - mean_I1
    spread = difference_IG.square().mean().sqrt()
    return difference_IG / (spread + 1e-4)


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """Rollouts that are learned from together, with the advantage of each action."""

    packed: PackedRollouts
    advantage_A: Tensor
    old_log_probs_A: Tensor | None  # None: the weights are still those that sampled the rollouts
    ref_log_probs_A: Tensor  # of the supervised model


def policy_loss(
    policy: Policy, minibatch: Minibatch, settings: RlSettings
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a minibatch, and its metrics."""
    found = action_log_probs(policy, minibatch.packed)
    log_probs = found.log_probs_A
    old_log_probs = minibatch.old_log_probs_A
    if old_log_probs is None:
        old_log_probs = log_probs.detach()
    ratio = (log_probs - old_log_probs).exp()
    clipped_ratio = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    unclipped = ratio * minibatch.advantage_A
    clipped = clipped_ratio * minibatch.advantage_A
    surrogate = torch.minimum(unclipped, clipped)
    ref_log_ratio = minibatch.ref_log_probs_A - log_probs
    kl = ref_log_ratio.exp() - ref_log_ratio - 1
    clip_fraction = (clipped < unclipped).float().mean()
    metrics = {
        "kl": kl.mean().item(),
        "clipped": clip_fraction.item(),
        "entropy": found.entropy_A.mean().item(),
    }
    objective = surrogate - settings.kl_weight * kl
    return -objective.mean(), metrics
