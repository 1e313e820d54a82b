"""The image encoder: a pre-norm vision transformer over crops, stitched and projected to the
decoder (facts, section 2).

Shapes: N crops, P patches of a crop (grid squared), D encoder width, G grid side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import VisionConfig
from wordmask.model.nn.layers import NORM_EPS, Mlp


class CropFeatures(NamedTuple):
    """Features of crops, each (N, P, D): after the final norm, and the residual stream after block
    `early_layer`.
    """

    final: Tensor
    early: Tensor


class VisionAttention(nn.Module):
    """Full self-attention over a crop's patches."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_NPD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_NPD).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.enc_dim, eps=NORM_EPS)
        self.attn = VisionAttention(config.enc_dim, config.enc_n_heads)
        self.ln2 = nn.LayerNorm(config.enc_dim, eps=NORM_EPS)
        self.mlp = Mlp(config.enc_dim, config.enc_ff_dim, config.enc_dim)

    def forward(self, x_NPD: Tensor) -> Tensor:
        x_NPD = x_NPD + self.attn(self.ln1(x_NPD))
        return x_NPD + self.mlp(self.ln2(x_NPD))


def patchify(crops_NCHW: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) to (N, P, C * patch * patch): patches row-major, each flattened as (channel, y,
    x).
    """
    n, c, h, w = crops_NCHW.shape
    x = crops_NCHW.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), c * patch * patch)


def stitch(tiles_NPD: Tensor, tiling: tuple[int, int], margin: int) -> Tensor:
    """Features of local tiles to one map (rows * window + 2 * margin, cols * window + 2 * margin,
    D).

    Each tile gives the window it owns; tiles on the border also keep their outer margin. `margin`
    in patches.
    """
    rows, cols = tiling
    grid = int(tiles_NPD.shape[1] ** 0.5)
    tiles = tiles_NPD.unflatten(1, (grid, grid)).unflatten(0, (rows, cols))

    def own(index: int, count: int) -> slice:
        return slice(0 if index == 0 else margin, grid if index == count - 1 else grid - margin)

    bands = [
        torch.cat([tiles[r, c, own(r, rows), own(c, cols)] for c in range(cols)], dim=1)
        for r in range(rows)
    ]
    return torch.cat(bands, dim=0)


class VisionEncoder(nn.Module):
    """Crops to features, and the features of an image's crops to its tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_emb = nn.Linear(config.in_channels * config.enc_patch_size**2, config.enc_dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.n_tokens, config.enc_dim))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.enc_n_layers))
        self.post_ln = nn.LayerNorm(config.enc_dim, eps=NORM_EPS)
        self.proj_mlp = Mlp(2 * config.enc_dim, config.proj_inner_dim, config.proj_out_dim)

    def forward(self, crops_NCHW: Tensor) -> CropFeatures:
        """Encode crops in -1..1, (N, C, crop, crop)."""
        x_NPD = self.patch_emb(patchify(crops_NCHW, self.config.enc_patch_size)) + self.pos_emb
        early_NPD = x_NPD
        for index, block in enumerate(self.blocks):
            x_NPD = block(x_NPD)
            if index == self.config.early_layer:
                early_NPD = x_NPD
        return CropFeatures(final=self.post_ln(x_NPD), early=early_NPD)

    def project(self, final_NPD: Tensor, tilings: list[tuple[int, int]]) -> Tensor:
        """Final features of the crops of several images, one after another, to image tokens
        (images, P, decoder width).

        `tilings` says how many crops each image has: 1 for a 1 x 1 tiling (see `ImageCrops`), else
        1 + rows * cols.
        """
        counts = [1 if tiling == (1, 1) else 1 + tiling[0] * tiling[1] for tiling in tilings]
        pairs = [
            self._global_and_local(crops, tiling)
            for crops, tiling in zip(final_NPD.split(counts), tilings, strict=True)
        ]
        return self.proj_mlp(torch.stack(pairs))

    def _global_and_local(self, crops_NPD: Tensor, tiling: tuple[int, int]) -> Tensor:
        whole_PD = crops_NPD[0]
        if tiling == (1, 1):
            # The one tile equals the whole, and pooling a grid to its own size changes nothing.
            return torch.cat([whole_PD, whole_PD], dim=-1)
        local_HWD = stitch(crops_NPD[1:], tiling, self.config.overlap_margin)
        pooled_DGG = F.adaptive_avg_pool2d(local_HWD.permute(2, 0, 1).float(), self.config.grid)
        return torch.cat([whole_PD, pooled_DGG.flatten(1).T.to(whole_PD.dtype)], dim=-1)
