"""Requests to the engine, the queue in which they wait, and what they get."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wordmask.model.decoding.prefill import prefill_prefix
from wordmask.model.decoding.prefix_pool import PrefixEntry
from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.settings import DecodeSettings
from wordmask.model.masks.boxes import Box, clip_box
from wordmask.model.nn.kv_cache import KVCache
from wordmask.model.nn.moondream import Moondream

ImageRequests = tuple[Tensor, Sequence[tuple[Any, Prompt]]]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The decoder's answer to one request.

    Args:
        box: (cx, cy, w, h) in unit of image, as the bins have it; it may leave the image.
        ids: the path tokens without the end token.
        absent: the decoder ended at once; box and ids have no meaning then.
        truncated: the token limit cut the path short.
        path_logprob: mean log-probability of the path tokens and the end token, as the model has
            them before the grammar; None without any.
    """

    box: Box
    ids: tuple[int, ...]
    absent: bool
    truncated: bool
    path_logprob: float | None

    @property
    def clipped_box(self) -> Box:
        """Return the part of the box in the image. The path is in unit of it."""
        return clip_box(self.box)


@dataclass(eq=False)
class Request:
    """A prompt about an image.

    Args:
        tag: comes back with the answer.
        prefix: the image, prefilled.
        row: its row of the batch; -1 while it is not running.
        steps: decoding steps since it was admitted.
    """

    tag: Any
    prompt: Prompt
    prefix: PrefixEntry
    row: int = -1
    steps: int = 0

    @property
    def length(self) -> int:
        """Return its number of tokens after the image."""
        return len(self.prompt.ids) + self.steps


class RequestQueue:
    """Waiting requests in their order.

    Images are taken from `source`, and prefilled, as their requests are wanted. Each item of it is
    an image's tokens (P, D), and the prompts about it with their tags.
    """

    def __init__(
        self, model: Moondream, settings: DecodeSettings, source: Iterator[ImageRequests]
    ) -> None:
        self._model = model
        self._settings = settings
        self._source = source
        self._waiting: deque[Request] = deque()
        self._exhausted = False

    def next_max_len(self, at_least: int) -> int | None:
        """Return the length of rows that the next requests need, None if there are none.

        It is the longest that a batch of them needs, and never less than `at_least`. Batch
        invariant rows have the length that the first of them needs.
        """
        self._fill(self._settings.max_batch_size)
        if not self._waiting:
            return None
        needed = [self._needed(request) for request in self._waiting]
        if self._settings.batch_invariant:
            return needed[0]
        return max(at_least, *needed)

    def may_have(self, max_len: int) -> bool:
        """Return whether a next request may fit into rows of this length.

        Nothing is read from the source to find out: an image read alone is slow.
        """
        if not self._waiting:
            return not self._exhausted
        return self._fits(self._waiting[0], max_len)

    def take(self, count: int, max_len: int) -> list[Request]:
        """Return the next requests, `count` at most, that fit into rows of this length."""
        self._fill(count)
        taken: list[Request] = []
        while self._waiting and len(taken) < count and self._fits(self._waiting[0], max_len):
            taken.append(self._waiting.popleft())
        return taken

    def _needed(self, request: Request) -> int:
        return self._settings.max_len(len(request.prompt.ids))

    def _fits(self, request: Request, max_len: int) -> bool:
        needed = self._needed(request)
        if self._settings.batch_invariant:
            return needed == max_len
        return needed <= max_len

    def _fill(self, count: int) -> None:
        """Take images until `count` requests are waiting, and prefill them."""
        images: list[ImageRequests] = []
        n_waiting = len(self._waiting)
        while n_waiting < count and not self._exhausted:
            item = next(self._source, None)
            if item is None:
                self._exhausted = True
                break
            images.append(item)
            n_waiting += len(item[1])
        if not images:
            return
        length = 1 + images[0][0].shape[0]
        at_once = self._settings.requests_per_prefill(length)
        for start in range(0, len(images), at_once):
            self._prefill(images[start : start + at_once])

    def _prefill(self, images: Sequence[ImageRequests]) -> None:
        image_IPD = torch.stack([image_PD for image_PD, _ in images])
        cache = prefill_prefix(self._model, self._settings.tokens, image_IPD)
        for index, (_, prompts) in enumerate(images):
            entries = self._entries(cache.slice_rows(index, index + 1), len(prompts))
            for (tag, prompt), entry in zip(prompts, entries, strict=True):
                self._waiting.append(Request(tag, prompt, entry))

    def _entries(self, cache: KVCache, count: int) -> list[PrefixEntry]:
        """Return the entry of each request about an image.

        Requests share it. Batch invariant ones have one each: else the shape of a product would
        depend on which rows ask about the same image.
        """
        if self._settings.batch_invariant:
            return [PrefixEntry(cache, n_unfinished=1) for _ in range(count)]
        return [PrefixEntry(cache, n_unfinished=count)] * count
