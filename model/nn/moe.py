"""The mixture of experts: tokens sorted by expert, one grouped matrix product for each layer.

Formulas in docs/model.md, Text decoder.

Shapes: N tokens, K experts per token, E experts, D width, I inner width of an expert, R sorted
rows (one for each token and expert of it, and filler rows).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import MoeConfig
from wordmask.model.runtime.devices import ROW_BLOCK


class Segments(NamedTuple):
    """Where rows sorted by expert lie.

    `index_M` (N * K) is the row of each sorted choice; `ends_E` (int32) is where each expert's
    segment of rows ends; `rows` is the number of rows R.
    """

    index_M: Tensor
    ends_E: Tensor
    rows: int


class ExpertWeights(nn.Module):
    """The weights of one layer of all experts, (E, out, in)."""

    def __init__(self, n_experts: int, out: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, out, inner))

    def forward(self, x_RD: Tensor, ends_E: Tensor) -> Tensor:
        """Multiply rows sorted by expert, (R, in) to (R, out).

        Rows below `ends_E[e]` belong to experts 0..e.
        """
        return F.grouped_mm(x_RD, self.transposed(x_RD.dtype), offs=ends_E)

    def transposed(self, dtype: torch.dtype) -> Tensor:
        """Return the weights as (E, in, out)."""
        return self.weight.transpose(1, 2).to(dtype)


class MixtureOfExperts(nn.Module):
    """A router and the experts among which it chooses, (..., D) to (..., D).

    The router takes the top K experts by logit and weighs them by a softmax over those K in
    float32. An expert is fc2(GELU(h) * (g + 1)) with (h, g) = fc1(x).
    """

    def __init__(self, dim: int, config: MoeConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.router = nn.Linear(dim, config.num_experts)
        self.fc1 = ExpertWeights(config.num_experts, 2 * config.expert_inner_dim, dim)
        self.fc2 = ExpertWeights(config.num_experts, dim, config.expert_inner_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Send each token through its own experts."""
        x_ND = x_BTD.flatten(0, -2)
        weight_NK, expert_NK = self._route(x_ND)
        expert_M = expert_NK.flatten()
        order_M = expert_M.argsort(stable=True)
        segments = self._segments(expert_M[order_M])

        # Filler rows keep token 0; their results are never read.
        token_R = torch.zeros(segments.rows, dtype=torch.long, device=order_M.device)
        token_R.index_copy_(0, segments.index_M, order_M // self.experts_per_token)
        fc1_RI = self.fc1(x_ND[token_R], segments.ends_E)
        h, g = fc1_RI.chunk(2, dim=-1)
        inner_RI = F.gelu(h) * (g + 1)
        out_RD = self.fc2(inner_RI, segments.ends_E)

        # Results are gathered, not added in place: the order of summation is then fixed.
        row_M = torch.empty_like(order_M).index_copy_(0, order_M, segments.index_M)
        out_NKD = out_RD[row_M].unflatten(0, (-1, self.experts_per_token))
        weighted_NKD = out_NKD * weight_NK[..., None]
        return weighted_NKD.sum(dim=1).view_as(x_BTD)

    def forward_all_experts(self, x_BTD: Tensor) -> Tensor:
        """Send each token through every expert, and use the results of its own.

        The shapes of the products then do not depend on the routing. A product's last digits
        depend on its shape: where a row must not depend on its neighbours, neither may the number
        of tokens that an expert gets. Slower than `forward`, otherwise the same.
        """
        x_ND = x_BTD.flatten(0, -2)
        weight_NK, expert_NK = self._route(x_ND)
        x_END = x_ND.expand(self.router.out_features, -1, -1)
        fc1_EDI = self.fc1.transposed(x_ND.dtype)
        fc2_EID = self.fc2.transposed(x_ND.dtype)
        h, g = torch.bmm(x_END, fc1_EDI).chunk(2, dim=-1)
        inner_ENI = F.gelu(h) * (g + 1)
        out_END = torch.bmm(inner_ENI, fc2_EID)
        token_N1 = torch.arange(len(x_ND), device=x_ND.device)[:, None]
        out_NKD = out_END[expert_NK, token_N1]
        weighted_NKD = out_NKD * weight_NK[..., None]
        return weighted_NKD.sum(dim=1).view_as(x_BTD)

    def _route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and indices of each token's experts, both (N, K)."""
        logits_NK, expert_NK = self.router(x_ND).topk(self.experts_per_token, dim=-1)
        weight_NK = logits_NK.float().softmax(dim=-1)
        return weight_NK.to(x_ND.dtype), expert_NK

    def _segments(self, expert_M: Tensor) -> Segments:
        """Lay out sorted choices in rows, one segment for each expert.

        On a CPU segments are whole row blocks, so that the number of other tokens that went to an
        expert leaves a token's last digits alone.
        """
        device = expert_M.device
        experts = torch.arange(self.router.out_features, device=device)
        ends_E = torch.searchsorted(expert_M, experts, right=True)
        index_M = torch.arange(len(expert_M), device=device)
        if device.type != "cpu":
            return Segments(index_M, ends_E.to(torch.int32), len(expert_M))
        lengths_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        filler_E = -lengths_E % ROW_BLOCK  # rows that fill an expert's last block
        filler_up_to_E = filler_E.cumsum(0)
        filler_before_E = filler_up_to_E - filler_E
        block_ends_E = ends_E + filler_up_to_E
        return Segments(
            index_M=index_M + filler_before_E[expert_M],
            ends_E=block_ends_E.to(torch.int32),
            rows=int(block_ends_E[-1]),
        )
