"""The grammar of path tokens as a table, so that decoding cannot leave it.

Exactly the sequences that `path_tokens.parse_path` calls well formed can be decoded: M first, whole
commands, "-" only before a number, the end only once something was drawn. Where the token limit
comes near, only what still leaves room for the rest of the command, a closing z and the end token
is allowed. See docs/model.md, Prompt and path tokens.

Shapes: B rows, V tokens (of the vocabulary in logits, of paths in the tables), S states, C kinds of
token, L tokens left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wordmask.model.decoding.path_tokens import ARITY, MINUS
from wordmask.model.decoding.tokenizer import PathTokenizer


class Kind(IntEnum):
    """The kinds of token that the grammar tells apart."""

    MOVE = 0
    LINE = 1
    CURVE = 2
    CLOSE = 3
    NUMBER = 4
    MINUS = 5
    END = 6


LETTERS = {Kind.MOVE: "M", Kind.LINE: "L", Kind.CURVE: "C"}
KIND_OF_LETTER = {"M": Kind.MOVE, "L": Kind.LINE, "C": Kind.CURVE, "Z": Kind.CLOSE}
START = 0  # the state of a path of no tokens
UNREACHED = 10**6  # tokens


@dataclass(frozen=True)
class _State:
    """The state of a path between two tokens.

    Args:
        command: the last letter; None if there is none yet, or the path is closed.
        n_numbers: numbers of the command's current set of arguments.
        whole: a set of arguments is complete.
        drawn: there is something to fill.
        minus: the last token is a minus sign.
        started: there is a token.
        ended: the last token is the end token.
    """

    command: Kind | None = None
    n_numbers: int = 0
    whole: bool = False
    drawn: bool = False
    minus: bool = False
    started: bool = False
    ended: bool = False

    def after(self, kind: Kind) -> _State | None:
        """Return the state after one more token, None where the grammar does not allow it."""
        if self.ended:
            return self._after_end(kind)
        if kind is Kind.NUMBER:
            return self._after_number()
        if self.minus:
            return None
        if kind is Kind.MINUS:
            return self._after_minus()
        return self._after_command(kind)

    def _after_end(self, kind: Kind) -> _State | None:
        if kind is not Kind.END:
            return None
        return self

    def _after_number(self) -> _State | None:
        if self.command is None:
            return None
        n_numbers = self.n_numbers + 1
        if n_numbers < ARITY[LETTERS[self.command]]:
            return replace(self, n_numbers=n_numbers, minus=False)
        # A first pair of a move only moves; further pairs are lines, as in SVG.
        only_moves = self.command is Kind.MOVE and not self.whole
        drawn = self.drawn or not only_moves
        return replace(self, n_numbers=0, whole=True, drawn=drawn, minus=False)

    def _after_minus(self) -> _State | None:
        if self.command is None:
            return None
        return replace(self, minus=True)

    def _after_command(self, kind: Kind) -> _State | None:
        if not self.started and kind is not Kind.MOVE:
            return None
        in_command = self.command is not None and (self.n_numbers > 0 or not self.whole)
        if in_command:
            return None
        if kind is Kind.END and not self.drawn:
            return None
        if kind is Kind.END:
            return _State(ended=True, started=True)
        command = None if kind is Kind.CLOSE else kind
        return _State(command, drawn=self.drawn, started=True)


@dataclass(frozen=True)
class _Table:
    """The grammar by state.

    Args:
        after: (S, C) the next state, -1 where there is none.
        needed: (S,) fewest tokens to a closed and ended path.
    """

    after: tuple[tuple[int, ...], ...]
    needed: tuple[int, ...]


@cache
def _table() -> _Table:
    states = [_State()]
    after: list[tuple[int, ...]] = []
    while len(after) < len(states):
        state = states[len(after)]
        row: list[int] = []
        for kind in Kind:
            following = state.after(kind)
            if following is None:
                row.append(-1)
                continue
            if following not in states:
                states.append(following)
            row.append(states.index(following))
        after.append(tuple(row))
    return _Table(tuple(after), tuple(_needed_tokens(states, after)))


def _needed_tokens(states: Sequence[_State], after: Sequence[Sequence[int]]) -> list[int]:
    """Return the fewest tokens from each state to a closed and ended path."""
    needed = [0 if state.ended else UNREACHED for state in states]
    for _ in states:
        for index, state in enumerate(states):
            if state.ended:
                continue
            for kind in Kind:
                following = after[index][kind]
                # An open path is closed before it ends: its end at once does not count.
                ends_open = kind is Kind.END and state.command is not None
                if following >= 0 and not ends_open:
                    needed[index] = min(needed[index], 1 + needed[following])
    return needed


def _kind_of(token: str) -> Kind:
    if token == MINUS:
        return Kind.MINUS
    if token.isdigit():
        return Kind.NUMBER
    return KIND_OF_LETTER[token.upper()]


def _kinds_of_tokens(tokenizer: PathTokenizer, eos_id: int) -> dict[int, Kind]:
    """Return the kind of each id that can stand in a path."""
    kinds = {token: _kind_of(text) for token, text in tokenizer.path_token_of.items()}
    kinds[eos_id] = Kind.END
    missing = [kind.name for kind in Kind if kind not in kinds.values()]
    if missing:
        raise ValueError(
            f"tokenizer: no token of kind {', '.join(missing)}, so it cannot write paths; use"
            " the model's own tokenizer.json"
        )
    return kinds


class Choice(NamedTuple):
    """The next token of each row; each part is (B,).

    `state` is the state after the token, `forced` says whether the token limit kept the row from
    its likeliest token.
    """

    ids: Tensor
    state: Tensor
    forced: Tensor


class FreeDecoding:
    """Selects the likeliest token, whatever it is, as the published engine does."""

    reserve = 0

    def choose(
        self, logits_BV: Tensor, state_B: Tensor, left_B: Tensor, *, near_limit: bool = True
    ) -> Choice:
        """Return the next token of each row; takes what `PathGrammar.choose` takes."""
        forced_B = torch.zeros_like(state_B, dtype=torch.bool)
        return Choice(logits_BV.argmax(dim=1), state_B, forced_B)


class PathGrammar:
    """Selects the likeliest token that the grammar allows, without waiting for the device.

    `reserve`: with so many tokens left, or more, the limit forbids nothing.
    """

    def __init__(self, tokenizer: PathTokenizer, eos_id: int, device: torch.device) -> None:
        """Make the tables on the device of the model.

        Raises:
            ValueError: the tokenizer has no tokens of some kind.
        """
        kinds = _kinds_of_tokens(tokenizer, eos_id)
        ids = sorted(kinds)
        table = _table()
        after_SV = np.array(table.after)[:, [kinds[token] for token in ids]]
        needed_SV = np.array(table.needed)[after_SV]
        legal_SV = after_SV >= 0
        self.reserve = int(needed_SV[legal_SV].max()) + 1
        left_L11 = np.arange(self.reserve + 1)[:, None, None]
        fits_LSV = legal_SV & (needed_SV < left_L11)
        # Where too few tokens are left for any path at all, the limit is not heeded.
        allowed_LSV = np.where(fits_LSV.any(axis=2, keepdims=True), fits_LSV, legal_SV)
        self._ids = torch.tensor(ids, device=device)
        self._after_SV = torch.tensor(after_SV, device=device)
        self._allowed_LSV = torch.tensor(allowed_LSV, device=device)
        self._column = {token: column for column, token in enumerate(ids)}

    def choose(
        self, logits_BV: Tensor, state_B: Tensor, left_B: Tensor, *, near_limit: bool = True
    ) -> Choice:
        """Return the next token of each row.

        Args:
            logits_BV: scores of the vocabulary.
            state_B: `START` before the first token, then the state of the choice before.
            left_B: how many tokens may still be written, this one and the end token included.
                Where too few are left for any path at all, the limit is not heeded.
            near_limit: False if all rows are known to have `reserve` tokens left, which is faster.
        """
        scores_BV = logits_BV[:, self._ids]
        legal_BV = self._allowed_LSV[self.reserve, state_B]
        allowed_BV = legal_BV
        if near_limit:
            allowed_BV = self._allowed_LSV[left_B.clamp(0, self.reserve), state_B]
        score_B, column_B = torch.where(allowed_BV, scores_BV, -torch.inf).max(dim=1)
        forced_B = torch.zeros_like(state_B, dtype=torch.bool)
        if near_limit:
            forced_B = torch.where(legal_BV, scores_BV, -torch.inf).amax(dim=1) > score_B
        return Choice(self._ids[column_B], self._after_SV[state_B, column_B], forced_B)

    def states(self, ids: Sequence[int]) -> list[int]:
        """Return the state before each token of a path, the first being `START`."""
        states = [START]
        for token in ids[:-1]:
            states.append(int(self._after_SV[states[-1], self._column[token]]))
        return states[: len(ids)]

    def columns(self, ids: Sequence[int]) -> list[int]:
        """Return the columns of path tokens, the end token among them, in `log_probs`."""
        return [self._column[token] for token in ids]

    def log_probs(
        self, logits_BV: Tensor, state_B: Tensor, left_B: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return log-probabilities (B, path tokens) of what `choose` samples with `GumbelSampler`.

        They are minus infinity where the grammar or the limit forbids a token.
        """
        allowed_BV = self._allowed_LSV[left_B.clamp(0, self.reserve), state_B]
        scores_BV = logits_BV[:, self._ids] / temperature
        return torch.where(allowed_BV, scores_BV, -torch.inf).log_softmax(dim=-1)
