"""The decoder: prefill over BOS, image and prompt, then greedy steps through the cache.

Ids are exact.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.files import Golden, assert_close
from wordmask.model.nn.config import MoeConfig, TextConfig
from wordmask.model.nn.kv_cache import KVCache
from wordmask.model.nn.text import TextDecoder, causal_mask


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden.read(golden_dir / "text.safetensors")


@pytest.fixture(scope="module")
def decoder(golden: Golden) -> TextDecoder:
    decoder = TextDecoder(golden.section(TextConfig, moe=MoeConfig(**golden.config["moe"])))
    decoder.load_state_dict(golden.below("model.text."))
    return decoder


@torch.no_grad()
def prefill(golden: Golden, decoder: TextDecoder, spare_slots: int) -> tuple[Tensor, KVCache]:
    """Residual stream (T, D) over BOS, image and prompt, and the cache with room for more."""
    bos = decoder.embed(torch.tensor([golden.config["bos_id"]]))
    x_TD = torch.cat(
        [bos, golden["input.image_embeddings"], decoder.embed(golden["input.prompt_ids"])]
    )
    length = len(x_TD)
    cache = decoder.new_cache(1, length + spare_slots)
    positions = torch.arange(length)[None]
    mask = causal_mask(positions, length, decoder.config.prefix_attn)
    return decoder(x_TD[None], positions, mask, cache)[0], cache


@torch.no_grad()
def test_prefill_and_greedy_steps(golden: Golden, decoder: TextDecoder) -> None:
    expected_ids = golden["expected.greedy_ids"]
    hidden_TD, cache = prefill(golden, decoder, spare_slots=len(expected_ids))
    expected = golden["expected.prefill_hidden_last12"]
    assert_close(hidden_TD[-len(expected) :], expected)

    stream, ids = [hidden_TD[-1]], []
    for position in range(len(hidden_TD), len(hidden_TD) + len(expected_ids)):
        ids.append(decoder.logits(stream[-1]).argmax())
        positions = torch.tensor([[position]])
        mask = causal_mask(positions, position + 1, decoder.config.prefix_attn)
        stream.append(decoder(decoder.embed(ids[-1])[None, None], positions, mask, cache)[0, 0])
    assert torch.stack(ids).tolist() == expected_ids.tolist()
    assert_close(torch.stack(stream), golden["expected.step_hidden"])
    assert_close(decoder.logits(torch.stack(stream)), golden["expected.step_logits"])
