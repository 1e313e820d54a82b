"""Rotation against complex multiplication."""

from __future__ import annotations

import torch

from wordmask.model.nn.rope import rotary_table, rotate

THETA = 1_500_000.0


def reference(x_BHTd: torch.Tensor, positions_BT: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Rotate dims i and i + rotary_dim / 2 as one complex number.

    The angle is position * theta ** (-2 i / rotary_dim).
    """
    half = rotary_dim // 2
    turned = x_BHTd.double().clone()
    for i in range(half):
        angle = positions_BT.double()[:, None] * THETA ** (-2 * i / rotary_dim)
        number = torch.complex(
            x_BHTd[..., i].double(), x_BHTd[..., i + half].double()
        ) * torch.polar(torch.ones_like(angle), angle)
        turned[..., i], turned[..., i + half] = number.real, number.imag
    return turned


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_rotation_is_complex_multiplication_at_each_rows_positions():
    x, positions = random(2, 3, 4, 12), torch.tensor([[0, 1, 2, 3], [730, 5, 1500, 17]])
    found = rotate(x, rotary_table(positions, 8, THETA))
    torch.testing.assert_close(found.double(), reference(x, positions, 8), rtol=0, atol=1e-4)


def test_dims_beyond_the_rotary_ones_pass_through():
    x = random(1, 2, 3, 12)
    assert torch.equal(
        rotate(x, rotary_table(torch.tensor([[5, 6, 7]]), 8, THETA))[..., 8:], x[..., 8:]
    )


def test_position_zero_changes_nothing():
    x = random(1, 2, 1, 12)
    assert torch.equal(rotate(x, rotary_table(torch.tensor([[0]]), 12, THETA)), x)


def test_products_depend_on_the_distance_only():
    q, k = random(1, 1, 1, 16), random(1, 1, 1, 16).flip(-1)

    def product(at_q: int, at_k: int) -> torch.Tensor:
        turned = [
            rotate(x, rotary_table(torch.tensor([[at]]), 16, THETA))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(9, 4), product(905, 900), rtol=0, atol=1e-3)
    assert (product(9, 4) - product(9, 5)).abs() > 1e-3


def test_low_precision_input_is_turned_in_float32():
    """Angles of far positions do not exist in bfloat16."""
    x, positions = random(1, 1, 1, 8), torch.tensor([[1503]])
    found = rotate(x.bfloat16(), rotary_table(positions, 8, THETA))
    assert found.dtype == torch.bfloat16
    expected = reference(x.bfloat16().float(), positions, 8)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)
