"""Sorted, grouped experts against a loop over tokens and experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wordmask.model.nn.config import MoeConfig
from wordmask.model.nn.moe import MixtureOfExperts


def make(experts: int = 6, per_token: int = 2, dim: int = 16, inner: int = 8) -> MixtureOfExperts:
    config = MoeConfig(
        num_experts=experts, start_layer=0, experts_per_token=per_token, expert_inner_dim=inner
    )
    layer = MixtureOfExperts(dim, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer


def slow(layer: MixtureOfExperts, x_BTD: Tensor) -> Tensor:
    """One token and one expert at a time."""
    out = torch.zeros(x_BTD.shape)
    for place in [(b, t) for b in range(x_BTD.shape[0]) for t in range(x_BTD.shape[1])]:
        x = x_BTD[place]
        logits = layer.router.weight @ x + layer.router.bias
        best = sorted(range(len(logits)), key=lambda e: -logits[e].item())[
            : layer.experts_per_token
        ]
        weights = torch.softmax(logits[best], dim=0)
        for weight, expert in zip(weights, best, strict=True):
            hidden = layer.fc1.weight[expert] @ x
            h, g = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
            out[place] += weight * (
                layer.fc2.weight[expert] @ (F.gelu(h, approximate="none") * (g + 1))
            )
    return out


@pytest.mark.parametrize(("experts", "per_token"), [(6, 2), (6, 1), (6, 6), (64, 8), (1, 1)])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 5)])
@torch.no_grad()
def test_equals_the_loop(experts, per_token, tokens):
    layer = make(experts, per_token)
    x = torch.randn(*tokens, 16, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(layer(x), slow(layer, x), rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_expert_that_no_token_chose_changes_nothing():
    layer = make()
    layer.router.weight.zero_()
    layer.router.bias.copy_(torch.tensor([0.0, 0, 5, 0, 4, 0]))
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(layer(x), slow(layer, x), rtol=0, atol=1e-5)
    used = layer(x)
    layer.fc1.weight[[0, 1, 3, 5]] = torch.nan
    assert torch.equal(layer(x), used)


@torch.no_grad()
def test_a_token_does_not_depend_on_the_others_of_its_batch():
    layer = make(dim=192, inner=128)
    x = torch.randn(8, 16, 192, generator=torch.Generator().manual_seed(8))
    together = layer(x)
    for rows in (slice(2, 3), slice(1, 8), slice(0, 4)):
        assert torch.equal(together[rows], layer(x[rows]))


def test_filler_rows_of_a_block_get_no_gradient():
    layer = make()
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(9), requires_grad=True)
    grads = []
    for out in (layer(x), slow(layer, x)):
        out.square().sum().backward()
        grads.append(
            [x.grad.clone(), *(parameter.grad.clone() for parameter in layer.parameters())]
        )
        x.grad = None
        layer.zero_grad()
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_through_all_experts_is_the_same_and_no_token_depends_on_the_others_to_the_last_digit():
    layer = make()
    x = torch.randn(8, 1, 16, generator=torch.Generator().manual_seed(8))
    found = layer.forward_all_experts(x)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-6)
    for row in range(8):
        others = torch.randn(8, 1, 16, generator=torch.Generator().manual_seed(100 + row))
        others[(row + 3) % 8] = x[row]
        assert torch.equal(layer.forward_all_experts(others)[(row + 3) % 8], found[row])


@torch.no_grad()
def test_bfloat16_is_near_float32():
    layer = make(experts=4, per_token=4)  # all experts: no token changes its experts by rounding
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(9))
    exact = layer(x)
    found = layer.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() / exact.norm() < 0.02


def test_gradients_reach_router_and_experts():
    layer = make()
    layer(
        torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(10))
    ).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
