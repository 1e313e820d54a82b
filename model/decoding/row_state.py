"""The tensors of a batch by row, and what is read of them when requests are finished.

Shapes: B rows, N rows admitted or finished together, L most path tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

from wordmask.model.decoding.path_grammar import START
from wordmask.model.decoding.requests import Decoded, Request
from wordmask.model.nn.text import TextDecoder
from wordmask.model.runtime.devices import AsyncHostCopy

RESET = "value for a new request"


@dataclass(kw_only=True)
class RowState:
    """The tensors of a batch that have a value for each row.

    Args:
        hidden_BD: residual stream at the row's last token.
        length_B: tokens after the image, which is the position of the next one.
        steps_B: decoding steps since its request was admitted.
        grammar_B: state of the path grammar.
        done_B: the row is finished, or free.
        absent_B: the model says that the expression names nothing.
        ended_B: the path has its end token.
        forced_B: the token limit kept the path from its likeliest token.
        box_B4: (cx, cy, w, h) in unit of image.
        logprob_B: sum of the path tokens' log-probabilities.
        ids_BL: the path tokens, -1 where there is none yet.
    """

    hidden_BD: Tensor
    length_B: Tensor
    box_B4: Tensor
    steps_B: Tensor = field(metadata={RESET: 0})
    grammar_B: Tensor = field(metadata={RESET: START})
    done_B: Tensor = field(metadata={RESET: False})
    absent_B: Tensor = field(metadata={RESET: False})
    ended_B: Tensor = field(metadata={RESET: False})
    forced_B: Tensor = field(metadata={RESET: False})
    logprob_B: Tensor = field(metadata={RESET: 0.0})
    ids_BL: Tensor = field(metadata={RESET: -1})

    @classmethod
    def free(cls, size: int, max_new_tokens: int, text: TextDecoder) -> Self:
        """Return the state of rows that are all free."""
        device = text.wte.device
        dim = text.config.dim
        length_B = torch.zeros(size, dtype=torch.long, device=device)
        done_B = torch.ones(size, dtype=torch.bool, device=device)
        return cls(
            hidden_BD=torch.zeros(size, dim, device=device, dtype=text.wte.dtype),
            length_B=length_B,
            box_B4=torch.zeros(size, 4, device=device),
            steps_B=torch.zeros_like(length_B),
            grammar_B=torch.full_like(length_B, START),
            done_B=done_B,
            absent_B=torch.zeros_like(done_B),
            ended_B=torch.zeros_like(done_B),
            forced_B=torch.zeros_like(done_B),
            logprob_B=torch.zeros(size, device=device),
            ids_BL=torch.full((size, max(max_new_tokens, 1)), -1, device=device),
        )

    def reset(self, rows_N: Tensor) -> None:
        """Prepare rows for new requests; prefill and box decoding write the other tensors."""
        for each in fields(self):
            if RESET in each.metadata:
                getattr(self, each.name).index_fill_(0, rows_N, each.metadata[RESET])

    def select(self, rows: Tensor) -> Self:
        """Return the state of the given rows only, in their order."""
        names = [each.name for each in fields(self)]
        selected = {name: getattr(self, name)[rows] for name in names}
        return type(self)(**selected)


@dataclass
class BoxDecoding:
    """Rows that were admitted together and still decode their boxes.

    Args:
        rows_N: the rows; the first is repeated to fill its block.
        n_steps: how many tokens of their boxes they have.
    """

    rows_N: Tensor
    n_steps: int = 0


@dataclass
class FinishedSnapshot:
    """The requests that were running after a step, and which of their rows were done."""

    requests: list[Request | None]
    done_B: AsyncHostCopy

    def done_requests(self) -> Iterator[Request]:
        """Yield the requests that were done, waiting for the device."""
        for request, done in zip(self.requests, self.done_B.tolist(), strict=True):
            if request is not None and done:
                yield request


@dataclass
class FinishedRows:
    """The results of finished requests, on their way from the device.

    Args:
        requests: N finished requests.
        numbers: (N, 7) box, log-probability, absent, truncated.
        ids: (N, L) path tokens, -1 where there is none.
    """

    requests: list[Request]
    numbers: AsyncHostCopy
    ids: AsyncHostCopy

    @classmethod
    def start_reading(cls, requests: list[Request], state: RowState, rows_N: Tensor) -> Self:
        """Start to read the results of requests from their rows."""
        absent_N = state.absent_B[rows_N]
        complete_N = state.ended_B[rows_N] | absent_N
        truncated_N = state.forced_B[rows_N] | ~complete_N
        others = [
            state.logprob_B[rows_N],
            absent_N.float(),
            truncated_N.float(),
        ]
        others_N3 = torch.stack(others, dim=1)
        numbers_N7 = torch.cat([state.box_B4[rows_N], others_N3], dim=1)
        return cls(
            requests=requests,
            numbers=AsyncHostCopy(numbers_N7),
            ids=AsyncHostCopy(state.ids_BL[rows_N]),
        )

    def read(self, eos_id: int) -> Iterator[tuple[Any, Decoded]]:
        """Yield each request's tag and result, waiting for the device."""
        rows = zip(self.requests, self.numbers.tolist(), self.ids.tolist(), strict=True)
        for request, numbers, ids in rows:
            yield request.tag, _decoded(numbers, ids, eos_id)


def _decoded(numbers: Sequence[float], ids_L: Sequence[int], eos_id: int) -> Decoded:
    cx, cy, w, h, logprob, absent, truncated = numbers
    ids = [token for token in ids_L if token >= 0]
    path_logprob = None
    if ids:
        path_logprob = logprob / len(ids)
    if ids and ids[-1] == eos_id:
        ids.pop()
    return Decoded(
        box=(cx, cy, w, h),
        ids=tuple(ids),
        absent=bool(absent),
        truncated=bool(truncated),
        path_logprob=path_logprob,
    )
