"""The same code on CUDA, shown without a GPU by fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from tests.support.batches import started_batch
from tests.support.fake_cuda import CUDA, put_on_fake_cuda
from tests.support.tiny import tiny_config
from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import START, PathGrammar
from wordmask.model.decoding.prompt import Prompt, embed_prompts
from wordmask.model.nn.config import BOX_TOKENS, MoondreamSegmentationConfig
from wordmask.model.nn.kv_cache import SharedPrefix
from wordmask.model.nn.moondream import MoondreamSegmentation, build_on_meta
from wordmask.model.nn.text import causal_mask
from wordmask.model.train.small_model import small_tokenizer


@pytest.fixture(params=["tiny", "full"])
def model(request) -> MoondreamSegmentation:
    config = tiny_config() if request.param == "tiny" else MoondreamSegmentationConfig()
    return build_on_meta(config).to(torch.bfloat16).requires_grad_(False).eval()


@torch.no_grad()
def test_every_part_stays_on_its_device_and_reads_nothing_back(model, fake_cuda):
    put_on_fake_cuda(model, fake_cuda)
    vision, text, region, config = (
        model.model.vision,
        model.model.text,
        model.model.region,
        model.config,
    )
    side, prefix = config.vision.crop_size, config.text.prefix_attn

    features = vision(torch.empty(7, 3, side, side, device=CUDA, dtype=model.dtype))
    image = vision.project(features.final, [(2, 3)])
    prompt = embed_prompts(
        [Prompt(ids=(1, 5, 5, 6, 3), regions=((1, (0.2,)), (3, (0.1, 0.2))))], text, region
    )[0]
    x_BTD = torch.cat(
        [text.embed(torch.zeros(1, 1, dtype=torch.long, device=CUDA)), image, prompt[None]], dim=1
    )
    assert x_BTD.shape == (1, prefix + 5, config.text.dim)

    length = x_BTD.shape[1]
    positions = torch.arange(length, device=CUDA)[None]
    cache = text.new_cache(1, length + 1)
    hidden = text(x_BTD, positions, causal_mask(positions, length, prefix), cache)
    shared, own = (
        SharedPrefix.build(cache, [0] * 3, CUDA),
        torch.zeros(3, 1, dtype=torch.long, device=CUDA),
    )
    step = text(
        hidden[:, -1:].expand(3, -1, -1),
        shared.length + own,
        causal_mask(own, 1, 0),
        text.new_cache(3, 4),
        shared,
    )
    assert step.dtype == torch.bfloat16

    masks = torch.empty(2, side, side, device=CUDA, dtype=model.dtype)
    refined = model.head.iterate(model.head.fuse(features.final[:2], features.early[:2]), masks, 2)
    for tensor in (
        text.logits(step),
        region.coord_logits(step),
        region.size_logits(step),
        *refined,
    ):
        assert tensor.device == CUDA


@torch.no_grad()
def test_the_engine_admits_and_steps_without_reading_anything_back(model, fake_cuda):
    """Covers prefill, prompts with and without references, steps of boxes and paths, and reuse."""
    put_on_fake_cuda(model, fake_cuda)
    config, tokenizer = model.config, small_tokenizer()
    engine = Engine(
        model.model,
        config.tokens,
        PathGrammar(tokenizer, config.tokens.eos_id, CUDA),
        max_batch_size=4,
    )
    prompts = [
        Prompt(ids=(1, 9, 2, 30, 3)),
        Prompt(ids=(1, 5, 5, 6, 3), regions=((1, (0.2,)), (3, (0.1, 0.2)))),
    ]
    images = [
        torch.empty(config.vision.n_tokens, config.text.dim, device=CUDA, dtype=model.dtype)
        for _ in range(2)
    ]
    batch = started_batch(engine, ((image, list(enumerate(prompts))) for image in images))
    for _ in range(BOX_TOKENS + 2):
        batch.step()
    batch.requests[1] = None
    batch.admit(started_batch(engine, [(images[0], [("again", prompts[0])])]).running)
    for _ in range(BOX_TOKENS + 2):
        batch.step()
    for tensor in (*vars(batch.state).values(), batch.cache.k):
        assert tensor.device == CUDA
    assert batch.state.ids_BL.shape == (4, config.tokens.max_new_tokens)
    assert batch.state.hidden_BD.shape == (4, config.text.dim)
    assert batch.state.hidden_BD.dtype == torch.bfloat16


def test_the_path_grammar_stays_on_its_device_and_reads_nothing_back(fake_cuda):
    tokenizer = small_tokenizer()
    grammar = PathGrammar(tokenizer, 0, CUDA)
    state, left = torch.full((3,), START, device=CUDA), torch.full((3,), 20, device=CUDA)
    for _ in range(2):
        choice = grammar.choose(torch.empty(3, len(tokenizer.fast), device=CUDA), state, left)
        assert {part.device for part in choice} == {CUDA}
        assert choice.ids.shape == choice.forced.shape == (3,)
        state = choice.state


def test_the_harness_sees_mixed_devices_and_hidden_waits(fake_cuda):
    there = torch.zeros(3, device=CUDA)
    with pytest.raises(RuntimeError, match=r"found at least two devices|two different devices"):
        there + torch.zeros(3)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
