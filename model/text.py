"""The decoder: parallel residual blocks, tau-scaled attention, mixture of experts in the later ones (facts, section 3).

Shapes: B rows, T new positions, S attended positions, D width, H heads, d head width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TextConfig
from model.kv_cache import KVCache
from model.moe import MixtureOfExperts
from model.rope import rotary_table, rotate
from model.vision import Mlp


class Tau(nn.Module):
    """Per-head scales of queries and values, from the token and from its position."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.wq = nn.Parameter(torch.zeros(n_heads, 3 * dim))
        self.wv = nn.Parameter(torch.zeros(n_heads, 3 * dim))
        self.alpha = nn.Parameter(torch.zeros(n_heads))

    def forward(self, qkv_BTC: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of queries and values, each (B, H, T, 1)."""
        features = F.gelu(qkv_BTC)
        steps = self.alpha.float() * torch.log(positions_BT.float() + 1)[..., None]
        position_BTH = (1 + torch.sigmoid(steps) - 0.5).to(qkv_BTC.dtype)
        scale_q = torch.tanh(F.linear(features, self.wq.to(features.dtype))) + position_BTH
        scale_v = torch.tanh(F.linear(features, self.wv.to(features.dtype))) + position_BTH
        return scale_q.transpose(1, 2)[..., None], scale_v.transpose(1, 2)[..., None]


class TextAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)
        self.tau = Tau(config.dim, config.n_heads)

    def heads(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled and rotated queries and keys, and scaled values, each (B, H, T, d)."""
        qkv = self.qkv(x_BTD)
        scale_q, scale_v = self.tau(qkv, context.positions_BT)
        q, k, v = qkv.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotate(q * scale_q, context.rotary), rotate(k, context.rotary), v * scale_v

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        q, k, v = self.heads(x_BTD, context)
        if context.cache is not None:
            context.cache.write(layer, context.positions_BT, k, v)
            slots = context.mask_B1TS.shape[-1]
            k, v = context.cache.k[layer, :, :, :slots], context.cache.v[layer, :, :, :slots]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask_B1TS)
        return self.proj(out.transpose(1, 2).flatten(2))


class Context:
    """What every block of one pass shares: positions, who may attend to whom, and the cache if there is one."""

    def __init__(self, config: TextConfig, positions_BT: Tensor, mask_B1TS: Tensor, cache: KVCache | None = None) -> None:
        self.positions_BT = positions_BT
        self.mask_B1TS = mask_B1TS
        self.cache = cache
        self.rotary = rotary_table(positions_BT, config.rotary_dim, config.rope_theta)


class TextBlock(nn.Module):
    """x + attn(ln(x)) + mlp(ln(x)), with one LayerNorm."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        dense = index < config.moe.start_layer
        self.ln = nn.LayerNorm(config.dim, eps=1e-5)
        self.attn = TextAttention(config)
        self.mlp = Mlp(config.dim, config.ff_dim, config.dim) if dense else MixtureOfExperts(config.dim, config.moe)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        normed = self.ln(x_BTD)
        return x_BTD + self.attn(normed, context, layer) + self.mlp(normed)


class TextDecoder(nn.Module):
    """Embeddings in, residual stream out; `logits` turns the stream into scores over the vocabulary."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Parameter(torch.zeros(config.vocab_size, config.dim))
        self.blocks = nn.ModuleList(TextBlock(config, index) for index in range(config.n_layers))
        self.post_ln = nn.LayerNorm(config.dim, eps=1e-5)
        self.lm_head = nn.Linear(config.dim, config.vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids of any shape to embeddings with D appended."""
        return F.embedding(ids, self.wte)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, mask_B1TS: Tensor, cache: KVCache | None = None) -> Tensor:
        """Residual stream (B, T, D) before `post_ln`.

        `mask_B1TS` is true where a position may attend. Without a cache S = T; with one, the new keys and values are
        written at `positions_BT` first and S slots of the cache are attended to.
        """
        context = Context(self.config, positions_BT, mask_B1TS, cache)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context, layer)
        return x_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Residual stream to float32 scores (..., V)."""
        return self.lm_head(self.post_ln(hidden_BTD)).float()

    def new_cache(self, rows: int, slots: int) -> KVCache:
        c = self.config
        return KVCache.empty(
            layers=c.n_layers, rows=rows, heads=c.n_heads, slots=slots, head_dim=c.head_dim, device=self.wte.device, dtype=self.wte.dtype
        )


def causal_mask(positions_BT: Tensor, slots: int, prefix: int) -> Tensor:
    """(B, 1, T, S): a position attends to itself and all before it; the first `prefix` also to each other."""
    query, key = positions_BT[:, None, :, None], torch.arange(slots, device=positions_BT.device)
    return (key <= query) | ((query < prefix) & (key < prefix))
