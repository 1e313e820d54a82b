"""Draws from a softmax as a noisy argmax, so that whatever takes the likeliest can also sample."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampling:
    """Adds noise to scores: the likeliest of them is then a draw from their softmax at
    `temperature`.

    That stays true when some of the scores are forbidden afterwards: it is a draw from the softmax
    of the others. With a temperature of 0 the scores are left alone. Draws are a function of `seed`
    and of what was drawn before.
    """

    def __init__(self, temperature: float, seed: int, device: torch.device | str = "cpu") -> None:
        if not temperature >= 0:
            raise ValueError(f"temperature = {temperature}: must be 0 (the likeliest) or more")
        self.temperature = temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, scores: Tensor) -> Tensor:
        if self.temperature == 0:
            return scores
        # Minus the logarithm of an exponential variate has the Gumbel distribution.
        return (
            scores
            - self.temperature
            * torch.empty_like(scores).exponential_(generator=self._generator).log_()
        )
