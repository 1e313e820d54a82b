"""Cross-entropy against a Gaussian over neighbouring classes instead of a single class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wordmask.model.decoding.path_tokens import PATH_SCALE


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Losses of bins and numbers, whose neighbours are nearly right.

    Standard deviations are in classes. `first_number` is the token id of 0; those of 1 to
    `PATH_SCALE` follow it.
    """

    first_number: int
    number_sigma: float = 12.0
    coord_sigma: float = 6.0
    size_sigma: float = 10.0

    def bin_loss(self, logits_NB: Tensor, target_N: Tensor, sigma: float) -> Tensor:
        """Return the mean loss of bins against their targets, in bins, whole or not."""
        return gaussian_cross_entropy(logits_NB.float().log_softmax(-1), target_N, sigma)

    def token_losses(self, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean losses of the path's numbers, and of all other tokens."""
        last_number = self.first_number + PATH_SCALE
        is_number = (target_N >= self.first_number) & (target_N <= last_number)
        log_probs = logits_NV.float().log_softmax(-1)
        others = F.nll_loss(log_probs[~is_number], target_N[~is_number])
        if not is_number.any():
            return others.new_zeros(()), others
        number_log_probs = log_probs[is_number][:, self.first_number : last_number + 1]
        numbers = target_N[is_number] - self.first_number
        return gaussian_cross_entropy(number_log_probs, numbers, self.number_sigma), others


def gaussian_cross_entropy(log_probs_NC: Tensor, target_N: Tensor, sigma: float) -> Tensor:
    """Return the mean cross-entropy against Gaussians around the targets."""
    classes = torch.arange(log_probs_NC.shape[-1], device=log_probs_NC.device)
    weight_NC = (-0.5 * ((classes - target_N[:, None]) / sigma) ** 2).softmax(-1)
    return -(weight_NC * log_probs_NC).sum(-1).mean()
