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
        log_probs = logits_NB.float().log_softmax(-1)
        return gaussian_cross_entropy(log_probs, target_N, sigma)

    def token_losses(self, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean losses of the path's numbers, and of all other tokens."""
        first = self.first_number
        stop = first + PATH_SCALE + 1
        is_number = (target_N >= first) & (target_N < stop)
        is_other = ~is_number
        log_probs = logits_NV.float().log_softmax(-1)
        others = F.nll_loss(log_probs[is_other], target_N[is_other])
        if not is_number.any():
            return others.new_zeros(()), others
        number_log_probs = log_probs[is_number][:, first:stop]
        numbers = target_N[is_number] - first
        loss = gaussian_cross_entropy(number_log_probs, numbers, self.number_sigma)
        return loss, others


def gaussian_cross_entropy(log_probs_NC: Tensor, target_N: Tensor, sigma: float) -> Tensor:
    """Return the mean cross-entropy against Gaussians around the targets."""
    n_classes = log_probs_NC.shape[-1]
    classes = torch.arange(n_classes, device=log_probs_NC.device)
    distance_NC = (classes - target_N[:, None]) / sigma
    weight_NC = (-0.5 * distance_NC**2).softmax(-1)
    losses_N = -(weight_NC * log_probs_NC).sum(-1)
    return losses_N.mean()
