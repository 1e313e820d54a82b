"""Batched decoding: images and prompts in, boxes and path tokens out (facts, sections 3-5).

Every distinct image is prefilled once; its keys and values are branched for each of its queries. Rows decode in step:
coordinate, coordinate, size, then path tokens until the end token. Finished rows are dropped from the batch now and then.
Our code reads nothing back from the device between those times; PyTorch's grouped product of the experts does where it has
no kernel for the dtype and device (on CUDA: other than bfloat16).

Shapes: I images, B rows (queries), P image tokens, T prompt tokens (padded), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import BOX_TOKENS, TokenConfig
from model.kv_cache import KVCache
from model.moondream import Moondream
from model.path_grammar import START, FreeDecoding, PathGrammar
from model.prompt import Prompt, embed_prompt
from model.region import coord_value, size_value
from model.text import causal_mask

DROP_EVERY = 8  # steps between looking which rows have finished: each look waits for the device


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What the decoder drew. `box` is (cx, cy, w, h) in unit of image; `ids` are the path tokens without the end token.

    `absent`: the decoder ended at once; box and ids are empty of meaning then. `truncated`: the token limit cut the path
    short. `path_logprob`: mean log-probability of the path tokens and the end token, as the model has them before the
    grammar; None without any.
    """

    box: tuple[float, float, float, float]
    ids: tuple[int, ...]
    absent: bool
    truncated: bool
    path_logprob: float | None


@torch.inference_mode()
def decode(
    model: Moondream,
    tokens: TokenConfig,
    image_IPD: Tensor,
    prompts: Sequence[Prompt],
    image_of: Sequence[int],
    chooser: PathGrammar | FreeDecoding,
    max_new_tokens: int | None = None,
) -> list[Decoded]:
    """Decode one path per prompt, greedily among the tokens that `chooser` allows. `image_of[b]` is the image that prompt b asks about."""
    limit = tokens.max_new_tokens if max_new_tokens is None else max_new_tokens
    cache = prefill_prefix(model, tokens, image_IPD)
    longest = max(len(prompt.ids) for prompt in prompts)
    prefix = cache.k.shape[3]
    cache = cache.branch(torch.tensor(image_of, device=image_IPD.device), slots=prefix + longest + BOX_TOKENS + limit)
    hidden_BD = prefill_prompts(model, cache, prompts, prefix)
    lengths_B = torch.tensor([prefix + len(prompt.ids) for prompt in prompts], device=image_IPD.device)
    decoder = _Decoder(model, tokens, chooser, cache, hidden_BD, lengths_B, prefix + longest)
    decoder.boxes()
    decoder.paths(limit)
    return decoder.results()


def prefill_prefix(model: Moondream, tokens: TokenConfig, image_IPD: Tensor) -> KVCache:
    """Keys and values of BOS and the image tokens, which attend to each other in both directions."""
    images, n_image, _ = image_IPD.shape
    text = model.text
    bos = text.embed(torch.full((images, 1), tokens.bos_id, device=image_IPD.device))
    positions = torch.arange(1 + n_image, device=image_IPD.device).expand(images, -1)
    cache = text.new_cache(images, 1 + n_image)
    text(torch.cat([bos, image_IPD], dim=1), positions, causal_mask(positions, 1 + n_image, 1 + n_image), cache)
    return cache


def prefill_prompts(model: Moondream, cache: KVCache, prompts: Sequence[Prompt], prefix: int) -> Tensor:
    """Read the prompts into the cache; the residual stream at each prompt's last token, (B, D).

    Shorter prompts are padded at the end. The padding writes slots that later tokens overwrite before any attends to them.
    """
    embedded = [embed_prompt(prompt, model.text, model.region) for prompt in prompts]
    x_BTD = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
    rows, length, _ = x_BTD.shape
    positions = (prefix + torch.arange(length, device=x_BTD.device)).expand(rows, -1)
    hidden = model.text(x_BTD, positions, causal_mask(positions, prefix + length, prefix), cache)
    last = torch.tensor([len(prompt.ids) - 1 for prompt in prompts], device=x_BTD.device)
    return hidden[torch.arange(rows, device=x_BTD.device), last]


class _Decoder:
    """Rows of one batch on their way: `hidden` is the stream at each row's last token, `lengths` its next position."""

    def __init__(self, model: Moondream, tokens: TokenConfig, chooser: PathGrammar | FreeDecoding, cache: KVCache, hidden_BD: Tensor,
                 lengths_B: Tensor, longest: int) -> None:  # fmt: skip
        self.model, self.tokens, self.chooser, self.cache = model, tokens, chooser, cache
        self.hidden, self.lengths, self.slots = hidden_BD, lengths_B, longest
        rows = len(lengths_B)
        self.alive = torch.arange(rows, device=hidden_BD.device)  # which row of the batch each running row is
        self.done = torch.zeros(rows, dtype=torch.bool, device=hidden_BD.device)
        self.absent, self.forced = torch.zeros_like(self.done), torch.zeros_like(self.done)
        self.state = torch.full_like(self.alive, START)  # of the running rows' paths
        self.box = hidden_BD.new_zeros(rows, 4, dtype=torch.float32)
        self.logprob = hidden_BD.new_zeros(rows, dtype=torch.float32)
        self.columns: list[tuple[Tensor, Tensor]] = []  # (rows, ids) of each path step

    def _advance(self, x_BD: Tensor) -> None:
        """Feed one embedding per running row."""
        self.slots += 1
        positions = self.lengths[:, None]
        mask = causal_mask(positions, self.slots, 0)
        self.hidden = self.model.text(x_BD[:, None], positions, mask, self.cache)[:, 0]
        self.lengths = self.lengths + 1

    def boxes(self) -> None:
        """Centre x, centre y, size; before them the choice between an object and an end at once."""
        region, config = self.model.region, self.model.region.config
        first = self.model.text.logits(self.hidden)
        self.absent = first[:, self.tokens.eos_id] > first[:, self.tokens.coord_id]
        self.done = self.absent.clone()
        for axis in range(2):
            value = coord_value(region.coord_logits(self.hidden).argmax(-1), config.coord_out_dim)
            self.box[:, axis] = value
            self._advance(region.encode_coord(value[:, None]))
        size = size_value(region.size_logits(self.hidden).argmax(-1), config.size_out_dim // 2)
        self.box[:, 2:] = size
        self._advance(region.encode_size(size))

    def paths(self, limit: int) -> None:
        for step in range(limit):
            if step % DROP_EVERY == 0 and not self._drop_finished():
                return
            logits = self.model.text.logits(self.hidden)
            ids, self.state, forced = self.chooser.choose(logits, self.state, torch.full_like(self.state, limit - step))
            log_p = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)
            running = ~self.done[self.alive]
            self.columns.append((self.alive, torch.where(running, ids, -1)))
            self.logprob[self.alive] += torch.where(running, log_p, 0.0)
            self.forced[self.alive] |= forced & running
            self.done[self.alive] |= ids == self.tokens.eos_id
            self._advance(self.model.text.embed(ids))

    def _drop_finished(self) -> bool:
        """Keep running rows only; whether there are any. The one place that waits for the device."""
        keep = (~self.done[self.alive]).nonzero()[:, 0]
        if len(keep) < len(self.alive):
            self.alive, self.hidden, self.lengths, self.state = (rows[keep] for rows in (self.alive, self.hidden, self.lengths, self.state))
            self.cache = self.cache.rows(keep)
        return len(keep) > 0

    def results(self) -> list[Decoded]:
        rows = len(self.done)
        ids = torch.full((rows, len(self.columns)), -1, device=self.done.device)
        for step, (alive, column) in enumerate(self.columns):
            ids[alive, step] = column
        truncated = ~self.done | self.forced
        host = zip(ids.tolist(), self.box.tolist(), self.absent.tolist(), truncated.tolist(), self.logprob.tolist(), strict=True)
        return [self._result(*row) for row in host]

    def _result(self, ids: list[int], box: list[float], absent: bool, truncated: bool, logprob: float) -> Decoded:
        drawn = [i for i in ids if i >= 0]
        path = tuple(drawn[:-1] if drawn and drawn[-1] == self.tokens.eos_id else drawn)
        mean = logprob / len(drawn) if drawn else None
        return Decoded(box=(box[0], box[1], box[2], box[3]), ids=path, absent=absent, truncated=truncated, path_logprob=mean)
