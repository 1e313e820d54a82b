"""Sampling from a softmax as the argmax of perturbed scores.

Whatever takes the likeliest score can then also sample.
"""

from __future__ import annotations

import torch
from torch import Tensor


class GumbelSampler:
    """Perturbs scores, so that the largest is a sample from their softmax at `temperature`.

    That stays true when some of the scores are forbidden afterwards: the largest of the others is a
    sample from the softmax of the others. With a temperature of 0 the scores stay as they are.
    Samples are a function of `seed` and of the calls before.
    """

    def __init__(self, temperature: float, seed: int, device: torch.device | str = "cpu") -> None:
        if not temperature >= 0:
            raise ValueError(f"temperature = {temperature}: must be 0 (the likeliest) or more")
        self.temperature = temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, scores: Tensor) -> Tensor:
        """Return perturbed scores of the same shape."""
        if self.temperature == 0:
            return scores
        # Minus the logarithm of an exponential variate has the Gumbel distribution.
        exponential = torch.empty_like(scores).exponential_(generator=self._generator)
        return scores - self.temperature * exponential.log_()
