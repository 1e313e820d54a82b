"""Histories of publication: in each of them a reader sees one whole run at every moment.

All moves from the first state are played, then all moves from each state that came of them, and so
on. A history is a way through the states. Ways that lead to one state go on alike: its moves are
played once, and count for each of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.publication import Deed, Fate, Move, State, World, fresh_state, stage

MOVES = 1_500  # played, at least, in each of two tests
HISTORIES = 5_000  # that these moves make, at least
DISTURBED: tuple[Deed, ...] = ("night", "night ahead", "retry", "gc")
QUIET: tuple[Deed, ...] = ("change input", "change weather", "wait")
FATES: tuple[Fate, ...] = ("dies", "dies in flight")
# What others do while a process stands still.
PAUSES: tuple[tuple[Deed, ...], ...] = (
    ("night",),
    ("change weather", "night"),
    ("change input", "night"),
    ("night", "gc"),
    ("gc", "gc"),
)


def fates_of(deed: Deed, changes: int) -> Iterator[Move]:
    """Yield all that can befall a process that makes so many changes."""
    for at in range(changes):
        for fate in FATES:
            yield Move(deed, fate, at)
        for others in PAUSES:
            yield Move(deed, "pauses", at, others)


class Explorer:
    """Plays moves from one state after the other, the first ones first."""

    def __init__(self, enter: Callable[[State], World], start: State) -> None:
        self._enter = enter
        self._waiting = deque([("", start)])
        # By the key of a state: how many moves lead there at least, and how many ways of so many.
        self._depth = {"": 0}
        self._ways = Counter({"": 1})
        self.played = 0
        self.histories = 0

    def explore(self, moves: int) -> None:
        """Play so many moves at least: all moves from each state that is begun with."""
        while self.played < moves:
            key, state = self._waiting.popleft()
            for deed in QUIET:
                self._play(key, state, Move(deed))
            for deed in DISTURBED:
                changes = self._play(key, state, Move(deed))
                for move in fates_of(deed, changes):
                    self._play(key, state, move)

    def _play(self, key: str, state: State, move: Move) -> int:
        """Play a move, note the state that it leads to, and return the changes of its process."""
        world = self._enter(state.copy())
        actor = world.play(move)
        reached = world.key()
        if reached not in self._depth:
            self._depth[reached] = self._depth[key] + 1
            self._waiting.append((reached, world.state))
        if self._depth[reached] > self._depth[key]:  # else it is no new way: it went round
            self._ways[reached] += self._ways[key]
        self.played += 1
        self.histories += self._ways[key]
        return actor.changes


def after(enter: Callable[[State], World], deeds: Sequence[Deed]) -> State:
    """Return the state after these deeds, by which nothing befalls anybody."""
    world = enter(fresh_state())
    for deed in deeds:
        world.play(Move(deed))
    return world.state


@pytest.mark.parametrize(
    ("exclusive", "past"),
    [
        (False, ()),
        # What is left of the first night is named, and may go at any time; the input is as it was.
        (True, ("night", "change input", "night", "gc", "wait", "change input")),
    ],
)
def test_a_reader_sees_one_whole_run_at_every_moment(
    exclusive: bool, past: tuple[Deed, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage(monkeypatch, exclusive=exclusive) as enter:
        explorer = Explorer(enter, after(enter, past))
        explorer.explore(MOVES)
    assert explorer.histories >= HISTORIES
