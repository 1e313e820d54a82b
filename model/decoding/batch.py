"""A batch of running requests: rows of static shape that are decoded together, a token a step.

Every row is at its own place in the sequence: coordinate, coordinate, size, then path tokens. A row
whose request is finished is free for the next one.

Shapes: B rows, N rows admitted together, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wordmask.model.decoding.prefill import prefill_prompts
from wordmask.model.decoding.prefix_pool import PrefixPool
from wordmask.model.decoding.requests import Request
from wordmask.model.decoding.row_state import BoxDecoding, FinishedRows, FinishedSnapshot, RowState
from wordmask.model.decoding.settings import ATTENDED_STEP, DecodeSettings, round_up
from wordmask.model.nn.config import BOX_TOKENS
from wordmask.model.nn.kv_cache import SharedPrefix
from wordmask.model.nn.moondream import Moondream
from wordmask.model.nn.region import coord_value, size_value
from wordmask.model.nn.text import causal_mask
from wordmask.model.runtime.devices import AsyncHostCopy, to_device, whole_blocks


class Batch:
    """Running requests by row, and the rows' state and caches."""

    def __init__(
        self,
        model: Moondream,
        settings: DecodeSettings,
        pool: PrefixPool,
        *,
        size: int,
        max_len: int,
    ) -> None:
        """Make `size` free rows of `max_len` tokens after the image."""
        self.model = model
        self.settings = settings
        self.pool = pool
        self.requests: list[Request | None] = [None] * size
        self.boxes: list[BoxDecoding] = []
        self.state = RowState.free(size, settings.max_new_tokens, model.text)
        self.cache = model.text.new_cache(size, max_len)
        self._prefix: SharedPrefix | None = None  # built anew after rows came or moved

    @property
    def running(self) -> list[Request]:
        """Return the running requests in the order of their rows."""
        return [request for request in self.requests if request is not None]

    @property
    def free_rows(self) -> list[int]:
        """Return the rows without a request."""
        return [row for row, request in enumerate(self.requests) if request is None]

    def admit(self, requests: Sequence[Request]) -> None:
        """Give each request a free row and prefill its prompt."""
        if not requests:
            return
        rows = self.free_rows
        longest = max(len(request.prompt.ids) for request in requests)
        at_once = self.settings.requests_per_prefill(longest)
        for start in range(0, len(requests), at_once):
            part = requests[start : start + at_once]
            self._admit(part, rows[start : start + len(part)])

    def _admit(self, requests: Sequence[Request], rows: list[int]) -> None:
        for request, row in zip(requests, rows, strict=True):
            request.row = row
            self.requests[row] = request
            self.pool.acquire(request.prefix)
        self._prefix = None
        prompts = [request.prompt for request in requests]
        prefix = self._prefix_of(requests)
        cache, hidden_ND = prefill_prompts(self.model, prefix, prompts)
        self._start_boxes(rows)

        device = self.settings.device
        rows_N = to_device(device, rows)
        # What masked positions hold is multiplied by 0, which mends no NaN of an earlier request.
        self.cache.v.index_fill_(1, rows_N, 0.0)
        self.cache.copy_rows(rows_N, cache)
        lengths = [request.length for request in requests]
        self.state.hidden_BD[rows_N] = hidden_ND
        self.state.length_B[rows_N] = to_device(device, lengths)
        self.state.reset(rows_N)

    def _start_boxes(self, rows: list[int]) -> None:
        device = self.settings.device
        n_repeated = whole_blocks(len(rows), device) - len(rows)
        repeated = rows[:1] * n_repeated
        rows_N = to_device(device, rows + repeated)
        self.boxes.append(BoxDecoding(rows_N))

    def _prefix_of(self, requests: Sequence[Request]) -> SharedPrefix:
        """Return the prefixes of requests that are prefilled together, each image once."""
        indices = [request.prefix.index for request in requests]
        distinct = list(dict.fromkeys(indices))
        image_of_each = [distinct.index(index) for index in indices]
        device = self.settings.device
        images = self.pool.cache.select(to_device(device, distinct))
        return SharedPrefix.build(images, image_of_each, device)

    def step(self) -> None:
        """Decode every row's next token and feed it to the model."""
        text = self.model.text
        state = self.state
        logits_BV = text.logits(state.hidden_BD)
        scores_BV = self.settings.perturb(logits_BV)
        ids_B = self._select_tokens(logits_BV, scores_BV)
        x_BD = text.embed(ids_B)
        for box in self.boxes:
            x_BD[box.rows_N] = self._decode_box(box, scores_BV)
        self.boxes = [box for box in self.boxes if box.n_steps < BOX_TOKENS]
        state.steps_B += 1
        self._forward(x_BD)
        state.length_B += ~state.done_B
        for request in self.running:
            request.steps += 1

    def _select_tokens(self, logits_BV: Tensor, scores_BV: Tensor) -> Tensor:
        """Select the next path tokens (B,) and record them for the rows that write a path.

        The tokens of the other rows have no meaning.
        """
        state = self.state
        settings = self.settings
        index_B = state.steps_B - BOX_TOKENS
        left_B = settings.max_new_tokens - index_B
        near_limit = self._any_near_limit()
        choice = settings.token_selector.choose(
            scores_BV, state.grammar_B, left_B, near_limit=near_limit
        )
        writing_B = (index_B >= 0) & ~state.done_B
        is_eos_B = choice.ids == settings.tokens.eos_id
        ended_B = writing_B & is_eos_B
        cut_B = writing_B & (left_B <= 1)
        log_p_B = _log_probs(logits_BV, choice.ids)
        state.grammar_B = torch.where(writing_B, choice.state, state.grammar_B)
        state.logprob_B += torch.where(writing_B, log_p_B, 0.0)
        state.forced_B |= choice.forced & writing_B
        state.ended_B |= ended_B
        state.done_B |= ended_B | cut_B
        self._record_ids(choice.ids, index_B, writing_B)
        return choice.ids

    def _record_ids(self, ids_B: Tensor, index_B: Tensor, writing_B: Tensor) -> None:
        """Store path tokens at their index.

        Rows that write no path store what they stored before, or what their first token replaces.
        """
        ids_BL = self.state.ids_BL
        last = ids_BL.shape[1] - 1
        at_B1 = index_B.clamp(0, last)[:, None]
        before_B1 = ids_BL.gather(1, at_B1)
        stored_B1 = torch.where(writing_B[:, None], ids_B[:, None], before_B1)
        ids_BL.scatter_(1, at_B1, stored_B1)

    def _any_near_limit(self) -> bool:
        """Return whether the token limit may forbid tokens of a row in this step."""
        settings = self.settings
        steps = (request.steps for request in self.running)
        longest = max(steps, default=0) - BOX_TOKENS
        left = settings.max_new_tokens - longest
        return left < settings.token_selector.reserve

    def _decode_box(self, box: BoxDecoding, scores_BV: Tensor) -> Tensor:
        """Decode centre x, centre y, size, one of them a step, and return their embeddings (N, D).

        The first step also chooses between an object and an end at once. Values are read back from
        the state: a row that is repeated may have several, and one of them counts.
        """
        rows_N = box.rows_N
        hidden_ND = self.state.hidden_BD[rows_N]
        axis = box.n_steps
        box.n_steps += 1
        if axis == 0:
            tokens = self.settings.tokens
            end_N = scores_BV[rows_N, tokens.eos_id]
            object_N = scores_BV[rows_N, tokens.coord_id]
            self.state.absent_B[rows_N] = end_N > object_N
        if box.n_steps < BOX_TOKENS:
            return self._decode_coord(rows_N, hidden_ND, axis)
        return self._decode_size(rows_N, hidden_ND)

    def _decode_coord(self, rows_N: Tensor, hidden_ND: Tensor, axis: int) -> Tensor:
        region = self.model.region
        box_B4 = self.state.box_B4
        logits_NC = region.coord_logits(hidden_ND)
        bins_N = self._likeliest(logits_NC)
        box_B4[rows_N, axis] = coord_value(bins_N, region.config.coord_out_dim)
        return region.encode_coord(box_B4[rows_N, axis, None])

    def _decode_size(self, rows_N: Tensor, hidden_ND: Tensor) -> Tensor:
        region = self.model.region
        state = self.state
        logits_N2S = region.size_logits(hidden_ND)
        bins_N2 = self._likeliest(logits_N2S)
        n_bins = region.config.size_out_dim // 2
        state.box_B4[rows_N, 2:] = size_value(bins_N2, n_bins)
        # Not earlier: until its box is decoded, a row stays where its `BoxDecoding` has it.
        no_path = self.settings.max_new_tokens == 0
        state.done_B[rows_N] = state.absent_B[rows_N] | no_path
        return region.encode_size(state.box_B4[rows_N, 2:])

    def _likeliest(self, logits: Tensor) -> Tensor:
        return self.settings.perturb(logits).argmax(-1)

    def _forward(self, x_BD: Tensor) -> None:
        """Feed the rows' embeddings to the decoder."""
        prefix = self._prefix_of_rows()
        own_B1 = self.state.length_B[:, None]
        mask = causal_mask(own_B1, self._attended_length(), 0)
        hidden_B1D = self.model.text(
            x_BD[:, None],
            prefix.length + own_B1,
            mask,
            self.cache,
            prefix,
            batch_invariant=self.settings.batch_invariant,
        )
        self.state.hidden_BD = hidden_B1D[:, 0]

    def _prefix_of_rows(self) -> SharedPrefix:
        """Return the prefixes of all rows."""
        if self._prefix is None:
            indices: list[int | None] = [None] * len(self.requests)
            for request in self.running:
                indices[request.row] = request.prefix.index
            self._prefix = SharedPrefix.build(self.pool.cache, indices, self.settings.device)
        return self._prefix

    def _attended_length(self) -> int:
        """Return how many positions after the image a step attends to, at least the longest row."""
        if self.settings.batch_invariant:
            return self.cache.max_len
        lengths = (request.length for request in self.running)
        longest = max(lengths, default=0) + 1
        attended = round_up(longest, ATTENDED_STEP)
        return min(self.cache.max_len, attended)

    def snapshot_finished(self) -> FinishedSnapshot:
        """Start to read which rows are done; the snapshot can be read later."""
        return FinishedSnapshot(list(self.requests), AsyncHostCopy(self.state.done_B))

    def release(self, snapshot: FinishedSnapshot) -> FinishedRows | None:
        """Free the rows that were done in a snapshot, and start to read their results."""
        done = snapshot.done_requests()
        finished = [request for request in done if request.row >= 0]
        if not finished:  # an earlier snapshot had them
            return None
        rows = [request.row for request in finished]
        rows_N = to_device(self.settings.device, rows)
        for request in finished:
            self.requests[request.row] = None
            request.row = -1
            self.pool.release(request.prefix)
        return FinishedRows.start_reading(finished, self.state, rows_N)

    def shrink(self) -> None:
        """Halve the batch, once or more, if the running requests fit and none decodes its box."""
        running = self.running
        size = self.settings.rows_for(len(running))
        if self.boxes or size > len(self.requests) // 2:
            return
        spare = self.free_rows[: size - len(running)]
        rows = [request.row for request in running]
        rows_N = to_device(self.settings.device, rows + spare)
        self.state = self.state.select(rows_N)
        self.cache = self.cache.select(rows_N)
        self._prefix = None
        self.pool.compact()
        self.requests = [*running, *[None] * len(spare)]
        for row, request in enumerate(running):
            request.row = row


def _log_probs(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """Return the log-probabilities (B,) of tokens."""
    logit_B = logits_BV.gather(1, ids_B[:, None])[:, 0]
    return logit_B - logits_BV.logsumexp(-1)
