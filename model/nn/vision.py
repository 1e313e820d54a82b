"""The vision encoder: a pre-norm transformer over crops, stitched and projected to the decoder.

Formulas in docs/model.md, Vision encoder.

Shapes: N crops, P patches of a crop (grid squared), D encoder width, G grid side, H heads, d head
width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import VisionConfig
from wordmask.model.nn.image_crops import Tiling
from wordmask.model.nn.layers import NORM_EPS, Mlp


class CropFeatures(NamedTuple):
    """Features of crops, each (N, P, D).

    `final` is the result of the final norm, `early` the residual stream after block `early_layer`.
    """

    final: Tensor
    early: Tensor


class VisionAttention(nn.Module):
    """Full self-attention over a crop's patches, (N, P, D) to (N, P, D)."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_NPD: Tensor) -> Tensor:
        qkv_NP3Hd = self.qkv(x_NPD).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv_NP3Hd.permute(2, 0, 3, 1, 4)
        out_NHPd = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out_NHPd.transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    """One pre-norm layer: x += attn(ln1(x)); x += mlp(ln2(x))."""

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
    """Cut crops into flattened patches, (N, C, H, W) to (N, P, C * patch * patch).

    Patches come row by row; each is flattened as (channel, y, x).
    """
    count, channels, height, width = crops_NCHW.shape
    rows = height // patch
    cols = width // patch
    tiled = crops_NCHW.reshape(count, channels, rows, patch, cols, patch)
    patches = tiled.permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(count, rows * cols, channels * patch * patch)


def stitch(tiles_NPD: Tensor, tiling: Tiling, margin: int) -> Tensor:
    """Join the features of local tiles to one map of the image.

    Each tile gives the window it owns; tiles on the border also keep their outer margin.

    Args:
        tiles_NPD: features of rows * cols tiles, row by row.
        tiling: (rows, cols).
        margin: overlap on each side of a tile, patches.

    Returns:
        The map (rows * window + 2 * margin, cols * window + 2 * margin, D), where a window has
        G - 2 * margin patches.
    """
    rows, cols = tiling
    grid = int(tiles_NPD.shape[1] ** 0.5)
    tiles_NGGD = tiles_NPD.unflatten(1, (grid, grid))
    tiles = tiles_NGGD.unflatten(0, (rows, cols))
    bands = []
    for row in range(rows):
        y = _owned(row, rows, grid, margin)
        windows = []
        for col in range(cols):
            x = _owned(col, cols, grid, margin)
            windows.append(tiles[row, col, y, x])
        bands.append(torch.cat(windows, dim=1))
    return torch.cat(bands, dim=0)


def _owned(index: int, count: int, grid: int, margin: int) -> slice:
    """Return the patches that tile `index` of `count` gives along one axis."""
    start, stop = margin, grid - margin
    if index == 0:
        start = 0
    if index == count - 1:
        stop = grid
    return slice(start, stop)


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
        """Encode crops (N, C, crop, crop) with values in -1..1."""
        patches = patchify(crops_NCHW, self.config.enc_patch_size)
        x_NPD = self.patch_emb(patches) + self.pos_emb
        early_NPD = x_NPD
        for index, block in enumerate(self.blocks):
            x_NPD = block(x_NPD)
            if index == self.config.early_layer:
                early_NPD = x_NPD
        return CropFeatures(final=self.post_ln(x_NPD), early=early_NPD)

    def project(self, final_NPD: Tensor, tilings: list[Tiling]) -> Tensor:
        """Project the final features of images' crops to image tokens.

        Args:
            final_NPD: features of the crops of several images, one image after another.
            tilings: (rows, cols) of each image, which say how many crops it has (see `ImageCrops`).

        Returns:
            Image tokens (images, P, decoder width).
        """
        counts = [crop_count(tiling) for tiling in tilings]
        pairs_P2D = [
            self._global_and_local(crops_NPD, tiling)
            for crops_NPD, tiling in zip(final_NPD.split(counts), tilings, strict=True)
        ]
        return self.proj_mlp(torch.stack(pairs_P2D))

    def _global_and_local(self, crops_NPD: Tensor, tiling: Tiling) -> Tensor:
        """Return the features of the whole beside those of the tiles, (P, 2 D)."""
        global_PD = crops_NPD[0]
        if tiling == (1, 1):
            # The one tile equals the whole, and pooling a grid to its own size changes nothing.
            return torch.cat([global_PD, global_PD], dim=-1)
        stitched_HWD = stitch(crops_NPD[1:], tiling, self.config.overlap_margin)
        stitched_DHW = stitched_HWD.permute(2, 0, 1).float()
        pooled_DGG = F.adaptive_avg_pool2d(stitched_DHW, self.config.grid)
        local_PD = pooled_DGG.flatten(1).T.to(global_PD.dtype)
        return torch.cat([global_PD, local_PD], dim=-1)


def crop_count(tiling: Tiling) -> int:
    """Return how many crops an image of this tiling has: the whole, and its tiles if several."""
    rows, cols = tiling
    if rows * cols == 1:
        return 1
    return 1 + rows * cols
