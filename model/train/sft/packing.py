"""The decoder's pass over the queries of an image, packed behind its prefix.

Shapes: I images, K queries of an image, T tokens of a query, P image tokens, D width,
S = 1 + P + K * T positions of a packed row.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wordmask.model.nn.config import TokenConfig
from wordmask.model.nn.moondream import Moondream
from wordmask.model.nn.text import TextAttention
from wordmask.model.nn.vision import CropFeatures
from wordmask.model.train.sft.batch import SceneBatch
from wordmask.model.train.teacher_forcing import PREFIX, embed_answers, packed_mask

# Heads whose attention is supervised: head `SUPERVISED_HEAD` of these blocks.
PHRASE_LAYER = 2
LOOK_LAYER = 5
SUPERVISED_HEAD = 0

Heads = dict[int, tuple[Tensor, Tensor]]  # of a block, the head's queries and keys (I, S, d)


@dataclass(frozen=True, kw_only=True)
class DecoderPass:
    """One pass over packed queries, with what the auxiliary losses need of it."""

    hidden: Tensor  # (I, K, T, D) stream of the queries after the last block
    streams: list[Tensor]  # of each block, (I, S, D) after it
    heads: Heads
    prefix: int  # positions of the prefix: 1 + P

    def of_queries(self, layer: int) -> Tensor:
        """Return the stream of the queries after a block, (I, K, T, D)."""
        return self._by_query(self.streams[layer])

    def of_prefix(self, layer: int) -> Tensor:
        """Return the stream of the prefix after a block, (I, 1 + P, D)."""
        return self.streams[layer][:, : self.prefix]

    def of_image(self, layer: int) -> Tensor:
        """Return the stream of the image tokens after a block, (I, P, D)."""
        return self.streams[layer][:, 1 : self.prefix]

    def prefix_scores(self, layer: int) -> Tensor:
        """Return the supervised head's scores of prefix tokens for query tokens, (I, K, T, 1 + P).

        They are scores before the softmax.
        """
        q, k = self.heads[layer]
        queries = self._by_query(q)
        keys = k[:, : self.prefix]
        return attention_scores(queries, keys)

    def _by_query(self, stream_ISD: Tensor) -> Tensor:
        behind_prefix = stream_ISD[:, self.prefix :]
        queries, length = self.hidden.shape[1:3]
        return behind_prefix.unflatten(1, (queries, length))


def attention_scores(query: Tensor, key_IPD: Tensor) -> Tensor:
    """Return the scores (I, ..., P), before the softmax, of keys for queries (I, ..., D)."""
    scores = torch.einsum("i...d,ipd->i...p", query, key_IPD).float()
    scale = query.shape[-1] ** -0.5
    return scores * scale


def token_at(stream_IKTD: Tensor, index_IK: Tensor) -> Tensor:
    """Return the stream at one token of each query, (I, K, D)."""
    index_IK1 = index_IK[..., None]
    return tokens_at(stream_IKTD, index_IK1)[:, :, 0]


def tokens_at(stream_IKTD: Tensor, index_IKN: Tensor) -> Tensor:
    """Return the stream at N tokens of each query, (I, K, N, D)."""
    width = stream_IKTD.shape[-1]
    index = index_IKN[..., None].expand(-1, -1, -1, width)
    return stream_IKTD.gather(2, index)


def packed_layout(
    prefix: int, queries: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return positions (1, S) and mask (1, 1, S, S) of one prefix and `queries` queries.

    Each query has `length` tokens, and sees the prefix and itself.
    """
    prefix_position = torch.arange(prefix, device=device)
    query_position = torch.arange(prefix, prefix + length, device=device)
    query_positions = query_position.repeat(queries)
    position = torch.cat([prefix_position, query_positions])[None]
    prefix_owner = torch.full_like(prefix_position, PREFIX)
    query_number = torch.arange(queries, device=device)
    query_owner = query_number.repeat_interleave(length)
    owner = torch.cat([prefix_owner, query_owner])[None]
    mask = packed_mask(owner, position, prefix)
    return position, mask


def decode_queries(
    model: Moondream, tokens: TokenConfig, features: CropFeatures, batch: SceneBatch
) -> Tensor:
    """Decode all queries of each image in one pass over [prefix | query 1 | query 2 | ...].

    Returns:
        The stream of the queries after the last block, (I, K, T, D).
    """
    images, queries, length = batch.ids.shape
    image_IPD = model.vision.project(features.final, batch.tilings)
    device = image_IPD.device
    start_ids = torch.full((images, 1), tokens.bos_id, device=device)
    start = model.text.embed(start_ids)
    answers = embed_answers(model, tokens, batch.ids, batch.coords, batch.sizes)
    image = image_IPD.to(answers.dtype)
    packed = torch.cat([start, image, answers.flatten(1, 2)], dim=1)
    prefix = 1 + image.shape[1]
    position, mask = packed_layout(prefix, queries, length, device)
    hidden = model.text(packed, position.expand(images, -1), mask)
    behind_prefix = hidden[:, prefix:]
    return behind_prefix.unflatten(1, (queries, length))


def observe_queries(
    model: Moondream, tokens: TokenConfig, features: CropFeatures, batch: SceneBatch
) -> DecoderPass:
    """Decode as `decode_queries` does, and keep the streams and heads of blocks on the way."""
    streams: list[Tensor] = []
    heads: Heads = {}
    with _hooks(model, streams, heads):
        hidden = decode_queries(model, tokens, features, batch)
    prefix = 1 + model.vision.config.n_tokens
    return DecoderPass(hidden=hidden, streams=streams, heads=heads, prefix=prefix)


@contextmanager
def _hooks(model: Moondream, streams: list[Tensor], heads: Heads) -> Generator[None]:
    """Within, each pass of the decoder appends to `streams` and writes into `heads`."""

    def keep_stream(_module: nn.Module, _args: object, stream: Tensor) -> None:
        streams.append(stream)

    def keep_head(layer: int, attention: TextAttention, args: tuple[Any, ...]) -> None:
        q, k, _ = attention.heads(*args)
        heads[layer] = (q[:, SUPERVISED_HEAD], k[:, SUPERVISED_HEAD])

    text = model.text
    handles = [block.register_forward_hook(keep_stream) for block in text.blocks]
    attentions = [m for m in text.modules() if isinstance(m, TextAttention)]
    for layer in (PHRASE_LAYER, LOOK_LAYER):
        keep = partial(keep_head, layer)
        attention = attentions[layer]
        handle = attention.register_forward_pre_hook(keep)
        handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
