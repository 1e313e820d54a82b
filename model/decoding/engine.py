"""Continuous batching: images and prompts in, boxes and path tokens out.

Every distinct image is prefilled once, and its keys and values are stored once for all its
requests. Which rows are finished is all that the host reads from the device on the way, and on a
GPU it reads it one step late, while the next step is already under way. See docs/model.md, Text
decoder, Region head, and Prompt and path tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from wordmask.model.decoding.batch import Batch
from wordmask.model.decoding.path_grammar import FreeDecoding, PathGrammar
from wordmask.model.decoding.prefix_pool import PrefixPool
from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.requests import Decoded, RequestQueue
from wordmask.model.decoding.row_state import FinishedRows, FinishedSnapshot
from wordmask.model.decoding.settings import DecodeSettings
from wordmask.model.nn.config import TokenConfig
from wordmask.model.nn.moondream import Moondream
from wordmask.model.runtime.devices import whole_blocks

MAX_BATCH_SIZE = 64  # by default
# Of a batch invariant engine. A multiple of 16: what is left over after whole vectors is rounded
# otherwise.
INVARIANT_BATCH_SIZE = 32

Tag = TypeVar("Tag")


class Engine:
    """Generates the paths of any number of requests, at most `max_batch_size` at a time."""

    def __init__(
        self,
        model: Moondream,
        tokens: TokenConfig,
        token_selector: PathGrammar | FreeDecoding,
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_new_tokens: int | None = None,
        batch_invariant: bool = False,
        lag: int | None = None,
        sampler: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Settle how paths are generated.

        Args:
            model: the vision-language model, on its device.
            tokens: ids that have a meaning of their own.
            token_selector: which path tokens are allowed.
            max_batch_size: rows of a batch, on a CPU rounded up to whole row blocks.
            max_new_tokens: most tokens of a path; None is the limit of `tokens`.
            batch_invariant: a row's result depends on nothing but the row, to the last digit.
                Images and prompts are then read one by one, and every step has
                `INVARIANT_BATCH_SIZE` rows, used or not, whatever `max_batch_size` is.
            lag: how many steps late the host reads which rows are finished; None is 1 on a GPU,
                else 0.
            sampler: perturbs scores, so that absence, box and path are sampled. Without it, they
                are the likeliest.
        """
        device = model.text.wte.device
        if lag is None:
            lag = int(device.type != "cpu")
        if max_new_tokens is None:
            max_new_tokens = tokens.max_new_tokens
        if batch_invariant:
            max_batch_size = INVARIANT_BATCH_SIZE
        else:
            max_batch_size = whole_blocks(max_batch_size, device)
        self.model = model
        self.settings = DecodeSettings(
            tokens=tokens,
            token_selector=token_selector,
            perturb=sampler or _unperturbed,
            device=device,
            max_batch_size=max_batch_size,
            max_new_tokens=max_new_tokens,
            batch_invariant=batch_invariant,
            lag=lag,
        )

    @torch.inference_mode()
    def generate(
        self, images: Iterable[tuple[Tensor, Sequence[tuple[Tag, Prompt]]]]
    ) -> Iterator[tuple[Tag, Decoded]]:
        """Generate one path per prompt, among the tokens that the token selector allows.

        Args:
            images: each item is an image's tokens (P, D) and the prompts about it, each with a tag.
                Items are taken only as rows come free.

        Yields:
            Tag and result of each prompt as they are finished, not in the order of the prompts.
        """
        queue = RequestQueue(self.model, self.settings, iter(images))
        pool = new_pool(self.settings)
        max_len = queue.next_max_len(at_least=0)
        while max_len is not None:
            yield from self._run_bucket(queue, pool, max_len)
            max_len = queue.next_max_len(at_least=max_len)

    def _run_bucket(
        self, queue: RequestQueue, pool: PrefixPool, max_len: int
    ) -> Iterator[tuple[Any, Decoded]]:
        """Decode until no request is left that fits into rows of this length."""
        settings = self.settings
        eos_id = settings.tokens.eos_id
        batch = first_batch(self.model, settings, queue, pool, max_len)
        snapshots: deque[FinishedSnapshot] = deque()
        results: deque[FinishedRows] = deque()
        while batch.running:
            batch.step()
            snapshots.append(batch.snapshot_finished())
            if len(snapshots) > settings.lag:
                finished = batch.release(snapshots.popleft())
                if finished is not None:
                    results.append(finished)
            while len(results) > settings.lag:
                yield from results.popleft().read(eos_id)
            n_free = len(batch.free_rows)
            if n_free >= settings.min_free_rows or not batch.running:
                batch.admit(queue.take(n_free, max_len))
            if not settings.batch_invariant and not queue.may_have(max_len):
                batch.shrink()
        for finished in results:
            yield from finished.read(eos_id)


def new_pool(settings: DecodeSettings) -> PrefixPool:
    """Return an empty pool; a batch invariant one has an index for every row from the start."""
    if settings.batch_invariant:
        return PrefixPool(min_size=settings.max_batch_size)
    return PrefixPool()


def first_batch(
    model: Moondream,
    settings: DecodeSettings,
    queue: RequestQueue,
    pool: PrefixPool,
    max_len: int,
) -> Batch:
    """Return a batch of the next requests, prefilled and ready to step."""
    requests = queue.take(settings.max_batch_size, max_len)
    size = settings.batch_size(len(requests))
    batch = Batch(model, settings, pool, size=size, max_len=max_len)
    batch.admit(requests)
    return batch


def _unperturbed(scores: Tensor) -> Tensor:
    return scores
