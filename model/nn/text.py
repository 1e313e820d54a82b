"""The text decoder: parallel residual blocks, tau-scaled attention, experts in the later ones.

Formulas in docs/model.md, Text decoder.

Shapes: B rows, T new positions, S attended positions, L layers, D width, H heads, d head width,
C = 3 D width of fused queries, keys and values, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import TextConfig
from wordmask.model.nn.kv_cache import KVCache, SharedPrefix, float32_product
from wordmask.model.nn.layers import NORM_EPS, Mlp
from wordmask.model.nn.moe import MixtureOfExperts
from wordmask.model.nn.rope import rotary_table, rotate


class Tau(nn.Module):
    """Tau scaling: a scale per head for queries and for values, from the token and its position."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.wq = nn.Parameter(torch.zeros(n_heads, 3 * dim))
        self.wv = nn.Parameter(torch.zeros(n_heads, 3 * dim))
        self.alpha = nn.Parameter(torch.zeros(n_heads))

    def forward(self, qkv_BTC: Tensor, position_scale_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales of queries and of values, each (B, H, T, 1).

        Args:
            qkv_BTC: fused queries, keys and values, before they are scaled and rotated.
            position_scale_BTH: the position's part, from `position_scales`.
        """
        features = F.gelu(qkv_BTC)
        weight = torch.cat([self.wq, self.wv]).to(features.dtype)
        token = torch.tanh(F.linear(features, weight))
        token_BT2H = token.unflatten(-1, (2, -1))
        scales_BT2H = token_BT2H + position_scale_BTH[:, :, None]
        scale_q, scale_v = scales_BT2H.permute(2, 0, 3, 1)[..., None]
        return scale_q, scale_v


def position_scales(alpha_LH: Tensor, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return each position's part of the tau scales in every layer, (L, B, T, H).

    It is 1 + (sigmoid(alpha * log(position + 1)) - 1/2), computed in float32.
    """
    log_BT1 = torch.log(positions_BT.float() + 1)[..., None]
    exponents_LBTH = alpha_LH.float()[:, None, None] * log_BT1
    return (0.5 + torch.sigmoid(exponents_LBTH)).to(dtype)


class ForwardContext:
    """What all blocks of one pass share: positions, the attention mask, cache and prefix.

    `batch_invariant`: no product's shape may depend on what the tokens say (see
    `MixtureOfExperts.forward_all_experts`).
    """

    def __init__(
        self,
        config: TextConfig,
        alpha_LH: Tensor,
        dtype: torch.dtype,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
        *,
        cache: KVCache | None = None,
        prefix: SharedPrefix | None = None,
        batch_invariant: bool = False,
    ) -> None:
        self.mask_B1TS = mask_B1TS
        self.cache = cache
        self.prefix = prefix
        self.batch_invariant = batch_invariant
        self.rotary = rotary_table(positions_BT, config.rotary_dim, config.rope_theta)
        self.position_scale_LBTH = position_scales(alpha_LH, positions_BT, dtype)
        if cache is not None:
            if prefix is not None:
                # The cache holds a row's own positions only; those of the prefix lie before them.
                positions_BT = positions_BT - prefix.length
            self.flat_indices = cache.flat_indices(positions_BT)

    def extend_cache(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values to attend to, each (B, H, S, d); the cache keeps new ones."""
        if self.cache is None:
            return k, v
        length = self.mask_B1TS.shape[-1]
        return self.cache.extend(layer, self.flat_indices, k, v, length)


class TextAttention(nn.Module):
    """Causal self-attention with rotary embedding and tau scaling."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)
        self.tau = Tau(config.dim, config.n_heads)

    def heads(
        self, x_BTD: Tensor, context: ForwardContext, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled and rotated queries, rotated keys, and scaled values, each (B, H, T, d)."""
        qkv_BTC = self.qkv(x_BTD)
        scale_q, scale_v = self.tau(qkv_BTC, context.position_scale_LBTH[layer])
        qkv_BT3Hd = qkv_BTC.unflatten(-1, (3, self.n_heads, -1))
        qkv_3BHTd = qkv_BT3Hd.permute(2, 0, 3, 1, 4)
        # A scale is one number for a whole head, so it may as well follow the rotation.
        q, k = rotate(qkv_3BHTd[:2], context.rotary)
        return q * scale_q, k, qkv_3BHTd[2] * scale_v

    def forward(self, x_BTD: Tensor, context: ForwardContext, layer: int) -> Tensor:
        q, k, v = self.heads(x_BTD, context, layer)
        k, v = context.extend_cache(layer, k, v)
        if context.prefix is None:
            out_BHTd = F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask_B1TS)
        else:
            out_BHTd = attend_with_prefix(context.prefix, layer, q, k, v, context.mask_B1TS)
        return self.proj(out_BHTd.transpose(1, 2).flatten(2))


def attend_with_prefix(
    prefix: SharedPrefix,
    layer: int,
    q_BHTd: Tensor,
    k_BHSd: Tensor,
    v_BHSd: Tensor,
    mask_B1TS: Tensor,
) -> Tensor:
    """Attend to the whole of each row's prefix, and to the row's own keys as the mask says.

    Scores, weights and sums are in float32, as within fused attention; weights are rounded to the
    dtype of the values that they are multiplied with.

    Returns:
        The attention's result before its projection, (B, H, T, d).
    """
    scale = q_BHTd.shape[-1] ** -0.5
    dtype = q_BHTd.dtype
    if dtype == torch.float32:  # queries are few, and lose nothing; in bfloat16 they would
        q_BHTd = q_BHTd * scale
    own_scores = float32_product(q_BHTd, k_BHSd.transpose(2, 3))
    own_scores = torch.where(mask_B1TS, own_scores, -torch.inf)
    prefix_scores = prefix.scores(layer, q_BHTd)
    scores = torch.cat([prefix_scores, own_scores], dim=-1)
    if dtype != torch.float32:
        scores.mul_(scale)
    weights = scores.softmax(dim=-1).to(dtype)
    own_length = own_scores.shape[-1]
    prefix_length = weights.shape[-1] - own_length
    prefix_weights, own_weights = weights.split([prefix_length, own_length], dim=-1)
    prefix_sums = prefix.weighted_values(layer, prefix_weights)
    sums_BHTd = prefix_sums + float32_product(own_weights, v_BHSd)
    return sums_BHTd.to(dtype)


class TextBlock(nn.Module):
    """One decoder layer: x + attn(ln(x)) + mlp(ln(x)), with one LayerNorm for both.

    The mlp is dense below `moe.start_layer` and a mixture of experts from there on.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.attn = TextAttention(config)
        self.mlp: nn.Module
        if index < config.moe.start_layer:
            self.mlp = Mlp(config.dim, config.ff_dim, config.dim)
        else:
            self.mlp = MixtureOfExperts(config.dim, config.moe)

    def forward(self, x_BTD: Tensor, context: ForwardContext, layer: int) -> Tensor:
        normed_BTD = self.ln(x_BTD)
        attended_BTD = x_BTD + self.attn(normed_BTD, context, layer)
        if context.batch_invariant and isinstance(self.mlp, MixtureOfExperts):
            return attended_BTD + self.mlp.forward_all_experts(normed_BTD)
        return attended_BTD + self.mlp(normed_BTD)


class TextDecoder(nn.Module):
    """Embeddings in, residual stream out; `logits` scores the vocabulary from the stream."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Parameter(torch.zeros(config.vocab_size, config.dim))
        self.blocks = nn.ModuleList(TextBlock(config, index) for index in range(config.n_layers))
        self.post_ln = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.lm_head = nn.Linear(config.dim, config.vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids of any shape, (..., D)."""
        return F.embedding(ids, self.wte)

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
        cache: KVCache | None = None,
        prefix: SharedPrefix | None = None,
        *,
        batch_invariant: bool = False,
    ) -> Tensor:
        """Run all blocks over embeddings.

        Args:
            x_BTD: embeddings of the new positions.
            positions_BT: their positions in the whole sequence, from 0.
            mask_B1TS: true where a position may attend. Without a cache S = T.
            cache: where new keys and values are stored first, at their positions (less the
                prefix's length); its first S positions are attended to.
            prefix: what lies before each row's own positions, attended to as a whole.
            batch_invariant: compute each row in the same way whatever the others say; slower.

        Returns:
            The residual stream before `post_ln`, (B, T, D).
        """
        context = self.forward_context(
            x_BTD.dtype,
            positions_BT,
            mask_B1TS,
            cache=cache,
            prefix=prefix,
            batch_invariant=batch_invariant,
        )
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context, layer)
        return x_BTD

    def forward_context(
        self,
        dtype: torch.dtype,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
        *,
        cache: KVCache | None = None,
        prefix: SharedPrefix | None = None,
        batch_invariant: bool = False,
    ) -> ForwardContext:
        """Return what the blocks share in a pass over these positions; see `forward`."""
        blocks = [cast(TextBlock, block) for block in self.blocks]
        return ForwardContext(
            self.config,
            torch.stack([block.attn.tau.alpha for block in blocks]),
            dtype,
            positions_BT,
            mask_B1TS,
            cache=cache,
            prefix=prefix,
            batch_invariant=batch_invariant,
        )

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Return float32 scores of the vocabulary, (..., V), from the residual stream (..., D)."""
        return self.lm_head(self.post_ln(hidden_BTD)).float()

    def new_cache(self, rows: int, max_len: int) -> KVCache:
        """Return an empty cache for `rows` rows of at most `max_len` positions."""
        return KVCache.zeros(
            layers=self.config.n_layers,
            rows=rows,
            heads=self.config.n_heads,
            max_len=max_len,
            head_dim=self.config.head_dim,
            device=self.wte.device,
            dtype=self.wte.dtype,
        )


def causal_mask(positions_BT: Tensor, key_length: int, prefix_length: int) -> Tensor:
    """Return which of the first `key_length` positions each position may attend to, (B, 1, T, S).

    A position attends to itself and to all before it. The first `prefix_length` positions attend
    to each other in both directions.
    """
    query = positions_BT[:, None, :, None]
    key = torch.arange(key_length, device=positions_BT.device)
    both_in_prefix = (query < prefix_length) & (key < prefix_length)
    return (key <= query) | both_in_prefix
