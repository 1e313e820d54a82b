"""The region head: coordinates and sizes as decoder tokens.

Values go in as Fourier features and come out as distributions over bins. Formulas in docs/model.md,
Region head.
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

from wordmask.model.nn.config import RegionConfig
from wordmask.model.nn.layers import NORM_EPS

SIZE_OCTAVES = 10  # sizes run over 2**-10 .. 1, in equal steps of the exponent


class Region(nn.Module):
    """Encoders that replace the embedding of a coordinate or size token, and decoders of both.

    The decoders read the decoder's residual stream at the last position, before `post_ln`, through
    the region head's own LayerNorm.
    """

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.config = config
        self.coord_features = nn.Parameter(torch.zeros(1, config.coord_feat_dim // 2))
        self.coord_encoder = nn.Linear(config.coord_feat_dim, config.dim)
        self.coord_decoder = nn.Linear(config.dim, config.coord_out_dim)
        self.size_features = nn.Parameter(torch.zeros(2, config.size_feat_dim // 2))
        self.size_encoder = nn.Linear(config.size_feat_dim, config.dim)
        self.size_decoder = nn.Linear(config.dim, config.size_out_dim)
        self.ln = nn.LayerNorm(config.dim, eps=NORM_EPS)

    def encode_coord(self, value_N1: Tensor) -> Tensor:
        """Return embeddings (..., dim) of coordinates in unit of image, (..., 1)."""
        return self.coord_encoder(_fourier_features(value_N1, self.coord_features))

    def encode_size(self, value_N2: Tensor) -> Tensor:
        """Return embeddings (..., dim) of (width, height) in unit of image, (..., 2)."""
        return self.size_encoder(_fourier_features(value_N2, self.size_features))

    def coord_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits over coordinate bins, (..., bins), from the residual stream (..., dim)."""
        return self.coord_decoder(self.ln(hidden_ND))

    def size_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits over size bins, (..., 2, bins), from the residual stream (..., dim).

        Of the two, width comes first, then height.
        """
        return self.size_decoder(self.ln(hidden_ND)).unflatten(-1, (2, -1))


def _fourier_features(value: Tensor, weight: Tensor) -> Tensor:
    angle = 2 * torch.pi * (value.to(weight.dtype) @ weight)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def coord_value(bins: Tensor, n_bins: int) -> Tensor:
    """Return the coordinates of bin indices: bin / (bins - 1), in unit of image."""
    return bins.float() / (n_bins - 1)


def size_value(bins: Tensor, n_bins: int) -> Tensor:
    """Return the sizes of bin indices: 2 ** (bin / (bins - 1) * 10 - 10), in unit of image."""
    # In float64: vectors and single numbers are computed by other instructions, whose last float32
    # digits differ.
    exponents = bins.double() / (n_bins - 1) * SIZE_OCTAVES - SIZE_OCTAVES
    return torch.exp2(exponents).float()


def coord_bin(value: float, n_bins: int) -> float:
    """Return the bin of a coordinate in unit of image, not rounded: inverse of `coord_value`."""
    clipped = min(max(value, 0.0), 1.0)
    return clipped * (n_bins - 1)


def size_bin(value: float, n_bins: int) -> float:
    """Return the bin of a size in unit of image, not rounded: inverse of `size_value`.

    Sizes below 2**-10 go to bin 0.
    """
    clipped = min(max(value, 2.0**-SIZE_OCTAVES), 1.0)
    octaves = log2(clipped) + SIZE_OCTAVES
    return octaves / SIZE_OCTAVES * (n_bins - 1)
