"""The decoder: parallel residual blocks, tau-scaled attention, mixture of experts in the later ones
(facts, section 3).

Shapes: B rows, T new positions, S attended positions, D width, H heads, d head width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import TextConfig
from wordmask.model.nn.kv_cache import KVCache, SharedPrefix
from wordmask.model.nn.moe import MixtureOfExperts
from wordmask.model.nn.rope import rotary_table, rotate
from wordmask.model.nn.vision import Mlp


class Tau(nn.Module):
    """Per-head scales of queries and values, from the token and from its position."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.wq = nn.Parameter(torch.zeros(n_heads, 3 * dim))
        self.wv = nn.Parameter(torch.zeros(n_heads, 3 * dim))
        self.alpha = nn.Parameter(torch.zeros(n_heads))

    def forward(self, qkv_BTC: Tensor, of_position_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of queries and values, each (B, H, T, 1). `of_position_BTH` is the part of the
        position, see `tau_of_positions`.
        """
        features = F.gelu(qkv_BTC)
        weight = torch.cat([self.wq, self.wv]).to(features.dtype)
        token = torch.tanh(F.linear(features, weight)).unflatten(-1, (2, -1))
        scale_q, scale_v = (token + of_position_BTH[:, :, None]).permute(2, 0, 3, 1)[..., None]
        return scale_q, scale_v


def tau_of_positions(alpha_LH: Tensor, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What a position adds to its token's scales in each layer, (L, B, T, H): 1 + sigmoid(alpha *
    log(position + 1)) - 1/2.
    """
    steps = alpha_LH.float()[:, None, None] * torch.log(positions_BT.float() + 1)[..., None]
    return (0.5 + torch.sigmoid(steps)).to(dtype)


class TextAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)
        self.tau = Tau(config.dim, config.n_heads)

    def heads(self, x_BTD: Tensor, context: Context, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled and rotated queries and keys, and scaled values, each (B, H, T, d)."""
        qkv = self.qkv(x_BTD)
        scale_q, scale_v = self.tau(qkv, context.tau_LBTH[layer])
        heads = qkv.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(
            heads[:2], context.rotary
        )  # a scale of a whole head may as well follow its rotation
        return q * scale_q, k, heads[2] * scale_v

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        q, k, v = self.heads(x_BTD, context, layer)
        if context.cache is not None:
            k, v = context.cache.extend(
                layer, context.places, k, v, slots=context.mask_B1TS.shape[-1]
            )
        if context.prefix is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask_B1TS)
        else:
            out = attend_after(context.prefix, layer, q, k, v, context.mask_B1TS)
        return self.proj(out.transpose(1, 2).flatten(2))


def attend_after(
    prefix: SharedPrefix,
    layer: int,
    q_BHTd: Tensor,
    k_BHSd: Tensor,
    v_BHSd: Tensor,
    mask_B1TS: Tensor,
) -> Tensor:
    """Attention to the whole of each row's prefix, and to its own keys as the mask says."""
    q_BHTd = q_BHTd * q_BHTd.shape[-1] ** -0.5
    own = torch.where(mask_B1TS, q_BHTd @ k_BHSd.transpose(2, 3), -torch.inf)
    weights = torch.cat([prefix.scores(layer, q_BHTd), own], dim=-1).softmax(dim=-1)
    before, after = weights.split([weights.shape[-1] - own.shape[-1], own.shape[-1]], dim=-1)
    return prefix.mix(layer, before) + after @ v_BHSd


class Context:
    """What every block of one pass shares: positions, who may attend to whom, and the cache if
    there is one.

    `fixed_shapes`: no product's shape may depend on what the tokens say, see `MixtureOfExperts`.
    """

    def __init__(
        self,
        config: TextConfig,
        alpha_LH: Tensor,
        dtype: torch.dtype,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
        cache: KVCache | None = None,
        prefix: SharedPrefix | None = None,
        *,
        fixed_shapes: bool = False,
    ) -> None:
        self.mask_B1TS = mask_B1TS
        self.cache = cache
        self.prefix = prefix
        self.places = (
            None if cache is None else cache.places(positions_BT - (prefix.length if prefix else 0))
        )
        self.rotary = rotary_table(positions_BT, config.rotary_dim, config.rope_theta)
        self.tau_LBTH = tau_of_positions(alpha_LH, positions_BT, dtype)
        self.fixed_shapes = fixed_shapes


class TextBlock(nn.Module):
    """x + attn(ln(x)) + mlp(ln(x)), with one LayerNorm."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        dense = index < config.moe.start_layer
        self.ln = nn.LayerNorm(config.dim, eps=1e-5)
        self.attn = TextAttention(config)
        self.mlp = (
            Mlp(config.dim, config.ff_dim, config.dim)
            if dense
            else MixtureOfExperts(config.dim, config.moe)
        )

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        normed = self.ln(x_BTD)
        mlp = (
            self.mlp.through_all
            if context.fixed_shapes and isinstance(self.mlp, MixtureOfExperts)
            else self.mlp
        )
        return x_BTD + self.attn(normed, context, layer) + mlp(normed)


class TextDecoder(nn.Module):
    """Embeddings in, residual stream out; `logits` turns the stream into scores over the
    vocabulary.
    """

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

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
        cache: KVCache | None = None,
        prefix: SharedPrefix | None = None,
        *,
        fixed_shapes: bool = False,
    ) -> Tensor:
        """Residual stream (B, T, D) before `post_ln`.

        `mask_B1TS` is true where a position may attend. Without a cache S = T; with one, the new
        keys and values are written at `positions_BT` first and S slots of the cache are attended
        to.
        """
        context = self.context(
            x_BTD.dtype, positions_BT, mask_B1TS, cache, prefix, fixed_shapes=fixed_shapes
        )
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context, layer)
        return x_BTD

    def context(
        self,
        dtype: torch.dtype,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
        cache: KVCache | None = None,
        prefix: SharedPrefix | None = None,
        *,
        fixed_shapes: bool = False,
    ) -> Context:
        alpha_LH = torch.stack([block.attn.tau.alpha for block in self.blocks])
        return Context(
            self.config,
            alpha_LH,
            dtype,
            positions_BT,
            mask_B1TS,
            cache,
            prefix,
            fixed_shapes=fixed_shapes,
        )

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Residual stream to float32 scores (..., V)."""
        return self.lm_head(self.post_ln(hidden_BTD)).float()

    def new_cache(self, rows: int, slots: int) -> KVCache:
        c = self.config
        return KVCache.empty(
            layers=c.n_layers,
            rows=rows,
            heads=c.n_heads,
            slots=slots,
            head_dim=c.head_dim,
            device=self.wte.device,
            dtype=self.wte.dtype,
        )


def causal_mask(positions_BT: Tensor, slots: int, prefix: int) -> Tensor:
    """(B, 1, T, S): a position attends to itself and all before it; the first `prefix` also to each
    other.
    """
    query, key = positions_BT[:, None, :, None], torch.arange(slots, device=positions_BT.device)
    return (key <= query) | ((query < prefix) & (key < prefix))
