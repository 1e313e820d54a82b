"""Rollouts: several answers to each prompt, sampled by the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import PathGrammar
from wordmask.model.decoding.prompt import Prompt, build_prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.sampler import GumbelSampler
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.image_crops import crop_image, normalise
from wordmask.model.nn.moondream import Moondream, MoondreamSegmentation
from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.dataset import SceneDataset


@dataclass(frozen=True, kw_only=True)
class ScenePrompt:
    """A prompt about one image, with its true answer."""

    image_HW3: np.ndarray  # uint8
    image_PD: Tensor  # image tokens, as the decoder sees them
    prompt: Prompt
    truth_HW: np.ndarray  # uint8 of 0/1, all 0 if the thing is absent


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
        """Return a model that decodes under the path grammar."""
        grammar = PathGrammar(tokenizer, model.config.tokens.eos_id, model.device)
        return cls(
            model=model.model,
            config=model.config,
            tokenizer=tokenizer,
            grammar=grammar,
            temperature=temperature,
        )


def make_prompts(policy: Policy, scenes: SceneDataset, seeds: Sequence[int]) -> list[ScenePrompt]:
    """Return one prompt about the scene of each seed; scenes without an expression are left out."""
    described = []
    for seed in seeds:
        scene = scenes.scene(seed)
        described += [(scene, expression) for expression in scenes.expressions(scene, seed, 1)]
    images = _encode(policy, [scene for scene, _ in described])
    tokens = policy.config.tokens
    return [
        ScenePrompt(
            image_HW3=scene.image_HW3,
            image_PD=image_PD,
            prompt=build_prompt(expression.text, (), policy.tokenizer, tokens),
            truth_HW=scene.truth(expression.target),
        )
        for image_PD, (scene, expression) in zip(images, described, strict=True)
    ]


@torch.no_grad()
def _encode(policy: Policy, scenes: list[Scene]) -> Tensor:
    """Return the image tokens of scenes, (I, P, D)."""
    crops = [crop_image(scene.image_HW3, policy.config.vision) for scene in scenes]
    crops_NHWC = np.concatenate([crop.crops_NHWC for crop in crops])
    embeddings, vision = policy.model.text.wte, policy.model.vision
    pixels = normalise(crops_NHWC, embeddings.device, embeddings.dtype)
    return vision.project(vision(pixels).final, [crop.tiling for crop in crops])


def generate_rollouts(
    policy: Policy, prompts: Sequence[ScenePrompt], count: int, seed: int
) -> list[list[Decoded]]:
    """Return `count` rollouts of each prompt, (I, G); greedy answers at a temperature of 0."""
    device = policy.model.text.wte.device
    engine = Engine(
        policy.model,
        policy.config.tokens,
        policy.grammar,
        max_batch_size=max(1, len(prompts) * count),
        sampler=GumbelSampler(policy.temperature, seed, device),
    )
    requests = (
        (prompt.image_PD, [((i, g), prompt.prompt) for g in range(count)])
        for i, prompt in enumerate(prompts)
    )
    decoded = dict(engine.generate(requests))
    return [[decoded[i, g] for g in range(count)] for i in range(len(prompts))]
