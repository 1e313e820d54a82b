"""The decoder beyond the golden file: mask, cache, shared prefix, tau scaling, and blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny import tiny_model
from wordmask.model.nn.config import TextConfig
from wordmask.model.nn.kv_cache import KVCache, SharedPrefix
from wordmask.model.nn.text import (
    TextDecoder,
    attend_with_prefix,
    causal_mask,
    position_scales,
)

PREFIX = 26  # BOS and 25 image tokens
WIDTH = 32


@pytest.fixture(scope="module")
def decoder() -> TextDecoder:
    return tiny_model().model.text


def embeddings(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def full_forward(decoder: TextDecoder, x_BTD: Tensor) -> Tensor:
    """All positions at once, without a cache."""
    positions = torch.arange(x_BTD.shape[1]).expand(len(x_BTD), -1)
    return decoder(x_BTD, positions, causal_mask(positions, x_BTD.shape[1], PREFIX))


def test_mask_has_a_two_way_prefix_and_is_causal_after_it():
    positions = torch.tensor([[0, 2, 3, 5], [4, 1, 6, 0]])
    mask = causal_mask(positions, key_length=7, prefix_length=3)
    assert mask.shape == (2, 1, 4, 7)
    for row in range(2):
        for step in range(4):
            for slot in range(7):
                at = int(positions[row, step])
                expected = slot <= at or (at < 3 and slot < 3)
                assert mask[row, 0, step, slot] == expected, (at, slot)


def test_without_a_prefix_the_mask_is_the_usual_triangle():
    mask = causal_mask(torch.arange(5)[None], key_length=5, prefix_length=0)
    assert torch.equal(mask[0, 0], torch.ones(5, 5, dtype=torch.bool).tril())


@torch.no_grad()
def test_the_prefix_sees_itself_whole_and_nothing_behind_it(decoder):
    x = embeddings(1, PREFIX + 4)
    before = full_forward(decoder, x)
    changed = x.clone()
    changed[:, PREFIX - 1] = embeddings(1, 1, seed=5)[:, 0]  # the last image token
    assert not torch.equal(full_forward(decoder, changed)[:, 0], before[:, 0])
    changed = x.clone()
    changed[:, PREFIX + 1] = embeddings(1, 1, seed=5)[:, 0]
    after = full_forward(decoder, changed)
    assert torch.equal(after[:, : PREFIX + 1], before[:, : PREFIX + 1])
    assert not torch.allclose(after[:, PREFIX + 2], before[:, PREFIX + 2], atol=1e-3)


@torch.no_grad()
def test_decoding_through_the_cache_equals_one_full_pass(decoder):
    x = embeddings(2, PREFIX + 9)
    expected = full_forward(decoder, x)
    cache = decoder.new_cache(
        2, PREFIX + 12
    )  # positions to spare: what is not attended to must not matter
    cache.k.fill_(torch.inf)
    cache.v.fill_(torch.inf)
    found = []
    for start, stop in [
        (0, PREFIX),
        (PREFIX, PREFIX + 4),
        *((PREFIX + i, PREFIX + i + 1) for i in range(4, 9)),
    ]:
        positions = torch.arange(start, stop).expand(2, -1)
        found.append(
            decoder(x[:, start:stop], positions, causal_mask(positions, stop, PREFIX), cache)
        )
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_one_batch_may_stand_at_other_positions(decoder):
    x = embeddings(2, PREFIX + 6)
    expected = full_forward(decoder, x)
    lengths = torch.tensor([PREFIX + 5, PREFIX + 2])
    cache = decoder.new_cache(2, PREFIX + 6)
    for row, length in enumerate(lengths.tolist()):
        part = cache.select(torch.tensor([row]))
        positions = torch.arange(length)[None]
        decoder(x[row : row + 1, :length], positions, causal_mask(positions, length, PREFIX), part)
        cache.k[:, row], cache.v[:, row] = part.k[:, 0], part.v[:, 0]
    positions = lengths[:, None]
    step = torch.stack([x[row, length] for row, length in enumerate(lengths.tolist())])[:, None]
    found = decoder(step, positions, causal_mask(positions, PREFIX + 6, PREFIX), cache)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, 0], expected[row, length], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_shared_prefix_equals_reading_it_again(decoder):
    """Two images, five queries: the prefix of an image is read once for all its queries."""
    images, image_of = embeddings(2, PREFIX), torch.tensor([1, 0, 1, 1, 0])
    queries = embeddings(5, 6, seed=1)
    expected = full_forward(decoder, torch.cat([images[image_of], queries], dim=1))[:, PREFIX:]

    cache = decoder.new_cache(2, PREFIX)
    positions = torch.arange(PREFIX).expand(2, -1)
    decoder(images, positions, causal_mask(positions, PREFIX, PREFIX), cache)
    prefix = SharedPrefix.build(cache, image_of.tolist(), torch.device("cpu"))
    own = torch.arange(6).expand(5, -1)
    found = decoder(queries, PREFIX + own, causal_mask(own, 6, 0), decoder.new_cache(5, 8), prefix)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tau_scales_written_out(decoder):
    tau = decoder.blocks[1].attn.tau
    qkv, positions = embeddings(2, 3).repeat(1, 1, 3), torch.tensor([[0, 7, 26], [100, 3, 1]])
    scale_q, scale_v = tau(qkv, position_scales(tau.alpha[None], positions, torch.float32)[0])
    assert scale_q.shape == (2, 2, 3, 1)
    for scale, weight in ((scale_q, tau.wq), (scale_v, tau.wv)):
        for row in range(2):
            for step in range(3):
                token = torch.tanh(weight @ F.gelu(qkv[row, step], approximate="none"))
                place = 1 + (torch.sigmoid(tau.alpha * torch.log(positions[row, step] + 1.0)) - 0.5)
                torch.testing.assert_close(scale[row, :, step, 0], token + place, rtol=0, atol=1e-6)


def test_at_position_zero_tau_adds_one(decoder):
    """log(0 + 1) = 0, so the part of the position is 1 whatever alpha is."""
    tau = decoder.blocks[0].attn.tau
    scale, _ = tau(
        torch.zeros(1, 1, 3 * WIDTH),
        position_scales(tau.alpha[None], torch.tensor([[0]]), torch.float32)[0],
    )
    assert scale.eq(1).all()


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_a_block_adds_attention_and_mlp_of_one_norm(decoder, index):
    """Parallel residual, in a dense block and in one of experts."""
    block, x = decoder.blocks[index], embeddings(1, 4)
    positions = torch.arange(4)[None]
    context = decoder.forward_context(x.dtype, positions, causal_mask(positions, 4, 0))
    normed = F.layer_norm(x, (WIDTH,), block.ln.weight, block.ln.bias, eps=1e-5)
    expected = x + block.attn(normed, context, index) + block.mlp(normed)
    torch.testing.assert_close(block(x, context, index), expected, rtol=0, atol=1e-6)


def test_experts_begin_at_their_layer(decoder):
    assert [hasattr(block.mlp, "router") for block in decoder.blocks] == [False, True, True]


@torch.no_grad()
def test_logits_are_the_head_over_the_normed_stream_in_float32(decoder):
    stream = embeddings(2, 3)
    expected = (
        F.layer_norm(stream, (WIDTH,), decoder.post_ln.weight, decoder.post_ln.bias)
        @ decoder.lm_head.weight.T
    )
    torch.testing.assert_close(
        decoder.logits(stream), expected + decoder.lm_head.bias, rtol=0, atol=1e-5
    )
    narrow = tiny_model().model.text.bfloat16()
    assert narrow.logits(stream.bfloat16()).dtype == torch.float32


def test_full_size_prefill_has_the_published_shapes():
    with torch.device("meta"):
        decoder = TextDecoder(TextConfig()).bfloat16()
        cache = decoder.new_cache(1, 750)
    assert cache.k.shape == (24, 1, 32, 750, 64)
    assert cache.k.dtype == torch.bfloat16
    assert decoder.embed(torch.empty(1, 7, dtype=torch.long, device="meta")).shape == (1, 7, 2048)
    assert decoder.logits(torch.empty(1, 7, 2048, device="meta", dtype=torch.bfloat16)).shape == (
        1,
        7,
        51200,
    )


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("deviation", [1, 4, 9])
def test_in_bfloat16_attention_beside_a_prefix_is_as_exact_as_fused_attention(deviation, width):
    """The published sizes: 730 positions of an image, 64 of the row, scores of some deviation."""
    generator = torch.Generator().manual_seed(0)
    own, heads = 64, 32
    k, v = torch.randn(2, 1, heads, 730 + own, width, generator=generator).bfloat16()
    q = (deviation * torch.randn(1, heads, 1, width, generator=generator)).bfloat16()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    fused = F.scaled_dot_product_attention(q, k, v)

    entries = KVCache(k[None, :, :, :730], v[None, :, :, :730])
    prefix = SharedPrefix.build(entries, [0], torch.device("cpu"))
    mask = torch.ones(1, 1, 1, own, dtype=torch.bool)
    found = attend_with_prefix(prefix, 0, q, k[:, :, 730:], v[:, :, 730:], mask)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.5 * (fused - exact).norm()
