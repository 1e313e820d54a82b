"""How paths are decoded: what the engine, its queue and its batch share and none of them changes.

`row` is an index into the batch, `length` a number of tokens after the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wordmask.model.decoding.path_grammar import FreeDecoding, PathGrammar
from wordmask.model.nn.config import BOX_TOKENS, TokenConfig
from wordmask.model.nn.kv_cache import next_power_of_two
from wordmask.model.runtime.devices import whole_blocks

PREFILL_TOKENS = 8192  # bounds the memory of a prefill, of images or of prompts
LENGTH_STEP = 64  # the length of a row is a multiple of this, so that few shapes occur
ATTENDED_STEP = 16  # and so is the part of it that a step attends to
# A prompt's pass costs much the same for one row as for several: a batch waits until so large a
# share of its rows is free.
ADMIT_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How paths are decoded.

    Args:
        tokens: ids that have a meaning of their own.
        token_selector: which path tokens are allowed, and the likeliest of them.
        perturb: what is done to scores before the largest is taken; it makes decoding random.
        device: of the model.
        max_batch_size: rows of a batch; on a CPU whole row blocks.
        max_new_tokens: most tokens of a path, the end token included.
        batch_invariant: a row's result depends on nothing but the row, to the last digit.
        lag: how many steps late the host learns which rows are finished.
    """

    tokens: TokenConfig
    token_selector: PathGrammar | FreeDecoding
    perturb: Callable[[Tensor], Tensor]
    device: torch.device
    max_batch_size: int
    max_new_tokens: int
    batch_invariant: bool
    lag: int

    @property
    def min_free_rows(self) -> int:
        """Return how many rows are free before further requests are admitted."""
        return max(1, self.max_batch_size // ADMIT_SHARE)

    def batch_size(self, n_requests: int) -> int:
        """Return how many rows a batch of so many requests has."""
        if self.batch_invariant:
            return self.max_batch_size
        return min(self.max_batch_size, self.rows_for(n_requests))

    def rows_for(self, n_requests: int) -> int:
        """Return the next of the few numbers of rows that batches may have."""
        return whole_blocks(next_power_of_two(n_requests), self.device)

    def max_len(self, prompt_tokens: int) -> int:
        """Return the length of a row that has room for a prompt of so many tokens and its path."""
        longest = prompt_tokens + BOX_TOKENS + self.max_new_tokens + 1
        return round_up(longest, LENGTH_STEP)

    def requests_per_prefill(self, length: int) -> int:
        """Return how many images or prompts of a length are prefilled together."""
        if self.batch_invariant:
            return 1
        return max(1, PREFILL_TOKENS // length)


def round_up(count: int, step: int) -> int:
    """Return the next multiple of `step`."""
    return -(-count // step) * step
