"""The grammar of path tokens as a table, so that decoding cannot leave it (facts, section 5).

Exactly the sequences that `path_tokens.parse_path` calls well formed can be decoded: M first, whole
commands, "-" only before a number, the end only once something was drawn. Where the token limit
comes near, only what still leaves room for the rest of the command, a closing z and the end token
is offered.

Shapes: B rows, V tokens (of the vocabulary in logits, of paths in the tables), S states, C kinds of
token, L tokens left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wordmask.model.decoding.path_tokens import ARITY, MINUS
from wordmask.model.decoding.tokenizer import PathTokenizer


class Kind(IntEnum):
    """What a token is to the grammar."""

    MOVE = 0
    LINE = 1
    CURVE = 2
    CLOSE = 3
    NUMBER = 4
    MINUS = 5
    END = 6


LETTERS = {Kind.MOVE: "M", Kind.LINE: "L", Kind.CURVE: "C"}


@dataclass(frozen=True)
class _State:
    """Where a path stands: `command` is the last letter (None: none yet, or closed), `have` the
    numbers of its current set of arguments, `whole` whether a set is complete, `drawn` whether
    there is anything to fill yet."""

    command: Kind | None = None
    have: int = 0
    whole: bool = False
    drawn: bool = False
    minus: bool = False
    started: bool = False
    ended: bool = False

    def after(self, kind: Kind) -> _State | None:
        """The state after one more token, None where the grammar does not allow it."""
        if self.ended:
            return self if kind is Kind.END else None
        if kind is Kind.NUMBER:
            return self._number()
        if self.minus:
            return None
        if kind is Kind.MINUS:
            return (
                _State(self.command, self.have, self.whole, self.drawn, minus=True, started=True)
                if self.command is not None
                else None
            )
        if not self.started:
            return _State(kind, started=True) if kind is Kind.MOVE else None
        if self.command is not None and (self.have or not self.whole):
            return None  # in the middle of a command
        if kind is Kind.END:
            return _State(ended=True, started=True) if self.drawn else None
        return _State(None if kind is Kind.CLOSE else kind, drawn=self.drawn, started=True)

    def _number(self) -> _State | None:
        if self.command is None:
            return None
        have = self.have + 1
        if have < ARITY[LETTERS[self.command]]:
            return _State(self.command, have, self.whole, self.drawn, started=True)
        # A first pair of a move only moves; further pairs are lines, as in SVG.
        return _State(
            self.command,
            0,
            True,
            self.drawn or self.command is not Kind.MOVE or self.whole,
            started=True,
        )


@dataclass(frozen=True)
class _Table:
    """`after` (S, C): the next state, -1 where there is none. `need` (S,): fewest tokens to a
    closed and ended path.
    """

    after: tuple[tuple[int, ...], ...]
    need: tuple[int, ...]


@cache
def _table() -> _Table:
    states = [_State()]
    after: list[tuple[int, ...]] = []
    for state in states:  # grows while it is walked
        row = []
        for kind in Kind:
            following = state.after(kind)
            if following is not None and following not in states:
                states.append(following)
            row.append(-1 if following is None else states.index(following))
        after.append(tuple(row))
    need = [0 if state.ended else 10**6 for state in states]
    for _ in states:
        for index, state in enumerate(states):
            if not state.ended:
                # An open path is closed before it ends, so ending it at once is no way to be
                # counted on.
                ways = [
                    after[index][kind]
                    for kind in Kind
                    if kind is not Kind.END or state.command is None
                ]
                need[index] = min([need[index], *(1 + need[way] for way in ways if way >= 0)])
    return _Table(tuple(after), tuple(need))


def _kind(token: str) -> Kind:
    if token == MINUS:
        return Kind.MINUS
    return (
        Kind.NUMBER
        if token.isdigit()
        else {"M": Kind.MOVE, "L": Kind.LINE, "C": Kind.CURVE, "Z": Kind.CLOSE}[token.upper()]
    )


START = 0  # the state of a path of no tokens


class Choice(NamedTuple):
    """Next token of each row, the states after it, and which rows the token limit kept from their
    likeliest token; each (B,).
    """

    ids: Tensor
    state: Tensor
    forced: Tensor


class FreeDecoding:
    """The published engine's way: the likeliest token, whatever it is."""

    reserve = 0

    def choose(
        self, logits_BV: Tensor, state_B: Tensor, left_B: Tensor, *, near_limit: bool = True
    ) -> Choice:
        """As `PathGrammar.choose`."""
        return Choice(logits_BV.argmax(dim=1), state_B, torch.zeros_like(state_B, dtype=torch.bool))


class PathGrammar:
    """The likeliest token that the grammar allows, on the device of the model and without waiting
    for it.

    `reserve`: with so many tokens left, or more, the limit forbids nothing.
    """

    def __init__(self, tokenizer: PathTokenizer, eos_id: int, device: torch.device) -> None:
        kinds = {i: _kind(token) for i, token in tokenizer.path_token_of.items()} | {
            eos_id: Kind.END
        }
        if missing := [kind.name for kind in Kind if kind not in kinds.values()]:
            raise ValueError(
                f"tokenizer: no token of kind {', '.join(missing)}, so it cannot write paths; use"
                " the model's own tokenizer.json"
            )
        ids = sorted(kinds)
        after_SV = np.array(_table().after)[:, [kinds[i] for i in ids]]
        need_SV, legal_SV = np.array(_table().need)[after_SV], after_SV >= 0
        self.reserve = int(need_SV[legal_SV].max()) + 1
        fits_LSV = legal_SV & (need_SV < np.arange(self.reserve + 1)[:, None, None])
        # Where too few tokens are left for any path at all, the limit is not heeded.
        fits_LSV = np.where(fits_LSV.any(axis=2, keepdims=True), fits_LSV, legal_SV)
        self._ids, self._after_SV, self._allowed_LSV = (
            torch.tensor(table, device=device) for table in (ids, after_SV, fits_LSV)
        )
        self._place = {token: place for place, token in enumerate(ids)}

    def choose(
        self, logits_BV: Tensor, state_B: Tensor, left_B: Tensor, *, near_limit: bool = True
    ) -> Choice:
        """The next token of each row. `state_B` is `START` before the first; `left_B` how many
        tokens may still be written, this one and the end token included. Where too few are left for
        any path at all, the limit is not heeded. Who knows that all rows have `reserve` left can
        say so by `near_limit`, which saves looking."""
        scores_BV = logits_BV[:, self._ids]
        legal_BV = self._allowed_LSV[self.reserve, state_B]
        allowed_BV = (
            self._allowed_LSV[left_B.clamp(0, self.reserve), state_B] if near_limit else legal_BV
        )
        score_B, place_B = torch.where(allowed_BV, scores_BV, -torch.inf).max(dim=1)
        forced_B = torch.zeros_like(state_B, dtype=torch.bool)
        if near_limit:
            forced_B = torch.where(legal_BV, scores_BV, -torch.inf).amax(dim=1) > score_B
        return Choice(self._ids[place_B], self._after_SV[state_B, place_B], forced_B)

    def states(self, ids: Sequence[int]) -> list[int]:
        """The state before each token of a path, the first being `START`."""
        states = [START]
        for token in ids[:-1]:
            states.append(int(self._after_SV[states[-1], self._place[token]]))
        return states[: len(ids)]

    def places(self, ids: Sequence[int]) -> list[int]:
        """Where path tokens, the end token among them, stand in `log_probs`."""
        return [self._place[token] for token in ids]

    def log_probs(
        self, logits_BV: Tensor, state_B: Tensor, left_B: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return log-probabilities (B, path tokens) of what `choose` samples with `GumbelSampler`.

        They are minus infinity where the grammar or the limit forbids a token.
        """
        allowed_BV = self._allowed_LSV[left_B.clamp(0, self.reserve), state_B]
        return torch.where(
            allowed_BV, logits_BV[:, self._ids] / temperature, -torch.inf
        ).log_softmax(dim=-1)
