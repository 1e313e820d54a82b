"""Layers that several parts of the model are built from, and the refiner's attention.

Shapes of the attention: B rows, F few tokens, N many patches or pixels, D width, H heads, d head
width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5  # of every LayerNorm in the model


def gelu_tanh(x: Tensor) -> Tensor:
    """Apply GELU in its tanh form, elementwise.

    The tanh form equals x * sigmoid(2 z). On a CPU these passes take little more than half the
    time of PyTorch's own function. Formula in docs/model.md, Vision encoder.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        return F.gelu(x, approximate="tanh")
    scale = 2 * math.sqrt(2 / math.pi)
    gate = torch.addcmul(x.new_full((), scale), x, x, value=scale * 0.044715)
    return gate.mul_(x).sigmoid_().mul_(x)


class Mlp(nn.Module):
    """Linear, tanh-GELU, linear: (..., dim) to (..., out)."""

    def __init__(self, dim: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_tanh(self.fc1(x)))


class HeadProjection(NamedTuple):
    """The projection of queries, keys or values, by head: weight (H, d, D) and bias (H, d)."""

    weight: Tensor
    bias: Tensor


def head_projections(attention: nn.MultiheadAttention) -> list[HeadProjection]:
    """Return the projections of queries, keys and values, in this order."""
    heads = (attention.num_heads, -1)
    weights = attention.in_proj_weight.chunk(3)
    biases = attention.in_proj_bias.chunk(3)
    return [
        HeadProjection(weight.unflatten(0, heads), bias.unflatten(0, heads))
        for weight, bias in zip(weights, biases, strict=True)
    ]


# The two functions below compute what nn.MultiheadAttention does, multiplied out in another order:
# what would project the many is applied to the few instead.


def attend_few_queries(
    attention: nn.MultiheadAttention, query_BFD: Tensor, key_BND: Tensor, value_BND: Tensor
) -> Tensor:
    """Attend with few queries to many keys, (B, F, D).

    The bias of the keys adds the same to all scores of a query, so softmax does not see it.
    """
    query, key, value = head_projections(attention)
    query_BFHd = torch.einsum("bfc,hdc->bfhd", query_BFD, query.weight) + query.bias
    query_BFHD = torch.einsum("bfhd,hdc->bfhc", query_BFHd, key.weight)

    # As one head of width D: the keys are as they came, the queries are projected to meet them.
    rows = len(key_BND)
    query_BKD = query_BFHD.flatten(1, 2)
    mixed_B1KD = F.scaled_dot_product_attention(
        query_BKD.expand(rows, -1, -1)[:, None],
        key_BND.expand(rows, -1, -1)[:, None],
        value_BND.expand(rows, -1, -1)[:, None],
        scale=key.weight.shape[1] ** -0.5,
    )
    mixed_BFHD = mixed_B1KD[:, 0].unflatten(1, query_BFHD.shape[1:3])
    out_BFHd = torch.einsum("bfhc,hdc->bfhd", mixed_BFHD, value.weight) + value.bias
    return attention.out_proj(out_BFHd.flatten(2))


def attend_few_keys(
    attention: nn.MultiheadAttention, query_BND: Tensor, key_BFD: Tensor, value_BFD: Tensor
) -> Tensor:
    """Attend with many queries to few keys, (B, N, D)."""
    query, key, value = head_projections(attention)
    scale = key.weight.shape[1] ** -0.5
    key_BFHd = (torch.einsum("bfc,hdc->bfhd", key_BFD, key.weight) + key.bias) * scale
    value_BFHd = torch.einsum("bfc,hdc->bfhd", value_BFD, value.weight) + value.bias

    key_BFHD = torch.einsum("bfhd,hdc->bfhc", key_BFHd, query.weight)
    out_weight_DHd = attention.out_proj.weight.unflatten(1, query.weight.shape[:2])
    value_BFHD = torch.einsum("bfhd,chd->bfhc", value_BFHd, out_weight_DHd)

    bias_BFH = (key_BFHd * query.bias).sum(-1)
    bias_B1K = bias_BFH.flatten(1)[:, None]
    key_BDK = key_BFHD.flatten(1, 2).transpose(1, 2)
    scores_BNK = torch.baddbmm(bias_B1K, query_BND, key_BDK)
    scores_BNFH = scores_BNK.unflatten(2, key_BFHD.shape[1:3])
    weights_BNFH = scores_BNFH.softmax(dim=2)
    return weights_BNFH.flatten(2) @ value_BFHD.flatten(1, 2) + attention.out_proj.bias
