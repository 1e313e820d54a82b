"""Mixture of experts: tokens sorted by expert, one grouped matrix product per layer of the experts
(facts, section 3).

Shapes: N tokens, K experts per token, E experts, D width, I inner width of an expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import MoeConfig
from wordmask.model.runtime.devices import ROW_BLOCK


class ExpertWeights(nn.Module):
    """The weights of one layer of all experts, (E, out, in)."""

    def __init__(self, n_experts: int, out: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, out, inner))

    def forward(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        """Rows sorted by expert; rows up to `ends_E[e]` belong to experts 0..e."""
        return F.grouped_mm(x_ND, self.weight.transpose(1, 2).to(x_ND.dtype), offs=ends_E)


class MixtureOfExperts(nn.Module):
    """Router, top K by logit, softmax over those K in float32; expert = fc2(GELU(h) * (g + 1)) with
    (h, g) = fc1(x).
    """

    def __init__(self, dim: int, config: MoeConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.router = nn.Linear(dim, config.num_experts)
        self.fc1 = ExpertWeights(config.num_experts, 2 * config.expert_inner_dim, dim)
        self.fc2 = ExpertWeights(config.num_experts, dim, config.expert_inner_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        weight_NK, expert_NK = self._route(x_ND)
        order = expert_NK.flatten().argsort(stable=True)
        place, ends_E, rows = self._segments(expert_NK.flatten()[order])
        token = torch.zeros(rows, dtype=torch.long, device=order.device).index_copy_(
            0, place, order // self.experts_per_token
        )
        h, g = self.fc1(x_ND[token], ends_E).chunk(2, dim=-1)
        sorted_out = self.fc2(F.gelu(h) * (g + 1), ends_E)

        # Put back by gathering rather than by adding in place: the order of summation is then
        # fixed.
        back = torch.empty_like(order).index_copy_(0, order, place)
        out_NKD = sorted_out[back].unflatten(0, (-1, self.experts_per_token))
        return (out_NKD * weight_NK[..., None]).sum(dim=1).view_as(x_BTD)

    def forward_all_experts(self, x_BTD: Tensor) -> Tensor:
        """The same by sending every token through every expert: products whose shapes do not depend
        on the routing.

        A product's last digits depend on its shape. Where a row must not depend on its neighbours
        (see `engine`), neither may how many tokens an expert gets.
        """
        x_ND = x_BTD.flatten(0, -2)
        weight_NK, expert_NK = self._route(x_ND)
        n_experts = self.router.out_features
        h, g = torch.bmm(
            x_ND.expand(n_experts, -1, -1), self.fc1.weight.transpose(1, 2).to(x_ND.dtype)
        ).chunk(2, dim=-1)
        out_END = torch.bmm(F.gelu(h) * (g + 1), self.fc2.weight.transpose(1, 2).to(x_ND.dtype))
        tokens_N1 = torch.arange(len(x_ND), device=x_ND.device)[:, None]
        return (out_END[expert_NK, tokens_N1] * weight_NK[..., None]).sum(dim=1).view_as(x_BTD)

    def _segments(self, expert_M: Tensor) -> tuple[Tensor, Tensor, int]:
        """Where sorted tokens stand, where each expert's segment ends, and how many rows there are.
        On a CPU segments are whole row blocks, so that how many other tokens went to its expert
        leaves a token's last digits alone."""
        experts = torch.arange(self.router.out_features, device=expert_M.device)
        ends_E = torch.searchsorted(expert_M, experts, right=True)
        place, tokens = torch.arange(len(expert_M), device=expert_M.device), len(expert_M)
        if expert_M.device.type != "cpu":
            return place, ends_E.to(torch.int32), tokens
        filler_E = (
            -ends_E.diff(prepend=ends_E.new_zeros(1)) % ROW_BLOCK
        )  # rows that fill an expert's last block
        fillers_E = filler_E.cumsum(0)
        block_ends_E = ends_E + fillers_E
        return (
            place + (fillers_E - filler_E)[expert_M],
            block_ends_E.to(torch.int32),
            int(block_ends_E[-1]),
        )

    def _route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, both (N, K)."""
        logits_NK, expert_NK = self.router(x_ND).topk(self.experts_per_token, dim=-1)
        return logits_NK.float().softmax(dim=-1).to(x_ND.dtype), expert_NK
