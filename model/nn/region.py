"""Coordinates and sizes as decoder tokens: Fourier features in, binned distributions out (facts,
section 4).
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

from wordmask.model.nn.config import RegionConfig

SIZE_OCTAVES = 10  # sizes run over 2**-10 .. 1, in equal steps of the exponent


class Region(nn.Module):
    """Encoders replace the token embedding of a coordinate or size token; decoders read the
    residual stream.
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
        self.ln = nn.LayerNorm(config.dim, eps=1e-5)

    def encode_coord(self, value_N1: Tensor) -> Tensor:
        """Coordinates in unit of image, (..., 1), to embeddings (..., dim)."""
        return self.coord_encoder(_fourier(value_N1, self.coord_features))

    def encode_size(self, value_N2: Tensor) -> Tensor:
        """(width, height) in unit of image, (..., 2), to embeddings (..., dim)."""
        return self.size_encoder(_fourier(value_N2, self.size_features))

    def coord_logits(self, hidden_ND: Tensor) -> Tensor:
        """Residual stream before `post_ln`, (..., dim), to logits over coordinate bins (...,
        bins).
        """
        return self.coord_decoder(self.ln(hidden_ND))

    def size_logits(self, hidden_ND: Tensor) -> Tensor:
        """Residual stream before `post_ln`, (..., dim), to logits over size bins (..., 2, bins):
        width, then height.
        """
        return self.size_decoder(self.ln(hidden_ND)).unflatten(-1, (2, -1))


def _fourier(value: Tensor, weight: Tensor) -> Tensor:
    angle = 2 * torch.pi * (value.to(weight.dtype) @ weight)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def coord_value(bins: Tensor, n_bins: int) -> Tensor:
    """Bin index to coordinate: bin / (bins - 1), in unit of image."""
    return bins.float() / (n_bins - 1)


def size_value(bins: Tensor, n_bins: int) -> Tensor:
    """Bin index to size: 2 ** (bin / (bins - 1) * 10 - 10), in unit of image."""
    # In float64: vectors and single numbers are computed by other instructions, whose last float32
    # digits differ.
    return torch.exp2(bins.double() / (n_bins - 1) * SIZE_OCTAVES - SIZE_OCTAVES).float()


def coord_bin(value: float, n_bins: int) -> float:
    """Inverse of `coord_value`, not rounded."""
    return min(max(value, 0.0), 1.0) * (n_bins - 1)


def size_bin(value: float, n_bins: int) -> float:
    """Inverse of `size_value`, not rounded; sizes below 2**-10 go to bin 0."""
    return (
        (log2(min(max(value, 2.0**-SIZE_OCTAVES), 1.0)) + SIZE_OCTAVES)
        / SIZE_OCTAVES
        * (n_bins - 1)
    )
