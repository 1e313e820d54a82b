"""Rollouts are drawn from the distribution that they are scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import START, PathGrammar
from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.sampler import GumbelSampler
from wordmask.model.hub.registry import resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.region import coord_bin, size_bin
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import VAL_SEEDS
from wordmask.model.train.rl.losses import action_log_probs
from wordmask.model.train.rl.packing import pack
from wordmask.model.train.rl.rollouts import Policy, ScenePrompt, generate_rollouts, make_prompts

LIMIT = 30  # tokens of a path: some are cut short
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def policy() -> Policy:
    source = resolve_model("demo")
    model, tokenizer = load_model(source), load_tokenizer(source)
    model.config.tokens = replace(model.config.tokens, max_new_tokens=LIMIT)
    grammar = PathGrammar(tokenizer, model.config.tokens.eos_id, torch.device("cpu"))
    return Policy(
        model=model.model,
        config=model.config,
        tokenizer=tokenizer,
        grammar=grammar,
        temperature=TEMPERATURE,
    )


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[ScenePrompt]:
    return make_prompts(
        policy, SceneDataset("shipped"), range(VAL_SEEDS.start, VAL_SEEDS.start + 3)
    )


class Recording(GumbelSampler):
    """Keeps the scores that were drawn from."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Tensor] = []

    def __call__(self, scores: Tensor) -> Tensor:
        self.seen.append(scores.clone())
        return super().__call__(scores)


def old_log_probs(policy: Policy, seen: Sequence[Tensor], slot: int, row: Decoded) -> list[float]:
    """Log-probabilities of a row's choices from the scores that the engine drew from."""
    tokens, region = policy.config.tokens, policy.config.region
    first, x, _, y, _, size, *rest = (scores[slot] / policy.temperature for scores in seen)
    there = first[[tokens.eos_id, tokens.coord_id]].log_softmax(-1)
    if row.absent:
        return [there[0].item()]
    found = [there[1]]
    found += [
        scores.log_softmax(-1)[round(coord_bin(v, len(scores)))]
        for scores, v in ((x, row.box[0]), (y, row.box[1]))
    ]
    found += [
        size[axis].log_softmax(-1)[round(size_bin(row.box[2 + axis], region.size_out_dim // 2))]
        for axis in (0, 1)
    ]
    kinds = torch.tensor([*policy.tokenizer.path_token_of, tokens.eos_id])
    likely = torch.nn.functional.one_hot(kinds, len(rest[0])).float()
    state = torch.tensor([START])
    for step, token in enumerate([*row.ids, tokens.eos_id][:LIMIT]):
        # What the grammar chooses where only that is likely is allowed.
        chosen = policy.grammar.choose(
            likely, state.expand(len(kinds)), torch.tensor([LIMIT - step]).expand(len(kinds))
        )
        allowed = kinds[chosen.ids == kinds]
        found.append(rest[step][token] - rest[step][allowed].logsumexp(-1))
        state = chosen.state[kinds == token]
    return [value.item() for value in found]


def test_recomputed_log_probabilities_are_those_drawn_from(
    policy: Policy, prompts: list[ScenePrompt]
) -> None:
    """Five rollouts of different lengths behind one prompt do not fill their block of rows."""
    recording = Recording(TEMPERATURE, 1)
    engine = Engine(
        policy.model, policy.config.tokens, policy.grammar, max_batch_size=8, sampler=recording
    )
    before = zip(prompts, generate_rollouts(policy, prompts, 5, seed=3), strict=True)
    prompt = next(
        prompt for prompt, rows in before if not any(row.absent for row in rows)
    )  # absent is one choice alone
    rows = dict(engine.generate([(prompt.image_PD, [(g, prompt.prompt) for g in range(5)])]))
    packed = pack(policy, [prompt], [[rows[g] for g in range(5)]])
    with torch.no_grad():
        found = action_log_probs(policy, packed)
    for g, row in rows.items():
        expected = old_log_probs(policy, recording.seen, g, row)
        assert found.log_probs_A[packed.rollout_A == g].tolist() == pytest.approx(
            expected, abs=2e-4
        )
    assert len({len(row.ids) for row in rows.values()}) > 1
    assert (found.entropy_A >= 0).all()


def test_packed_rollouts_do_not_see_each_other(policy: Policy, prompts: list[ScenePrompt]) -> None:
    drawn = generate_rollouts(policy, prompts, 4, seed=3)
    together = pack(policy, prompts, drawn)
    with torch.no_grad():
        all_log_p = action_log_probs(policy, together).log_probs_A
        for i, prompt in enumerate(prompts):
            for g in range(4):
                alone = action_log_probs(
                    policy, pack(policy, [prompt], [[drawn[i][g]]])
                ).log_probs_A
                assert all_log_p[together.rollout_A == i * 4 + g].tolist() == pytest.approx(
                    alone.tolist(), abs=1e-4
                )


def test_some_rollouts_are_absent_and_have_one_choice(
    policy: Policy, prompts: list[ScenePrompt]
) -> None:
    bias = policy.model.text.lm_head.bias
    with torch.no_grad():
        bias[policy.config.tokens.eos_id] += 100
    try:
        drawn = generate_rollouts(policy, prompts[:1], 2, seed=0)
        assert [row.absent for row in drawn[0]] == [True, True]
        with torch.no_grad():
            found = action_log_probs(policy, pack(policy, prompts[:1], drawn))
        assert found.log_probs_A.tolist() == pytest.approx([0.0, 0.0])
    finally:
        with torch.no_grad():
            bias[policy.config.tokens.eos_id] -= 100


def test_without_temperature_rollouts_are_greedy(
    policy: Policy, prompts: list[ScenePrompt]
) -> None:
    greedy = Engine(policy.model, policy.config.tokens, policy.grammar)
    expected = dict(greedy.generate((q.image_PD, [(i, q.prompt)]) for i, q in enumerate(prompts)))
    for temperature in (0.0, 1e-5):
        found = generate_rollouts(replace(policy, temperature=temperature), prompts, 2, seed=0)
        for i in range(len(prompts)):
            for row in found[i]:
                assert (row.ids, row.absent) == (expected[i].ids, expected[i].absent)
                assert row.box == pytest.approx(expected[i].box, rel=0.02), (
                    "by a bin, where two are as good and batches differ"
                )


def test_rollouts_are_a_function_of_the_seed_and_well_formed(
    policy: Policy, prompts: list[ScenePrompt]
) -> None:
    first, again, other = (generate_rollouts(policy, prompts, 4, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    for group in first:
        assert len(set(group)) == 4
        assert all(
            row.absent or parse_path(policy.tokenizer.path_tokens(row.ids)).well_formed
            for row in group
        )


def test_draws_have_the_softmaxs_frequencies_also_where_some_are_forbidden() -> None:
    scores = torch.tensor([1.0, 0.0, 2.0, -1.0])
    noisy = GumbelSampler(0.5, seed=0)(scores.expand(40_000, -1))
    for allowed in ([0, 1, 2, 3], [0, 1, 3]):
        counts = np.bincount(noisy[:, allowed].argmax(dim=1).numpy(), minlength=len(allowed)) / len(
            noisy
        )
        assert counts == pytest.approx((scores[allowed] / 0.5).softmax(-1).numpy(), abs=0.01)
    with pytest.raises(ValueError, match=r"temperature = -1\.0"):
        GumbelSampler(-1.0, seed=0)


def test_prompts_with_references_are_refused(policy: Policy, prompts: list[ScenePrompt]) -> None:
    prompt = replace(
        prompts[0], prompt=Prompt(ids=(1, 5, 5, 3), regions=((1, (0.5,)), (2, (0.5,))))
    )
    with pytest.raises(ValueError, match="2 spatial references"):
        pack(policy, [prompt], [[]])
