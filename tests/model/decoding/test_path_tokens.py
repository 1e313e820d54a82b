"""Path tokens: whatever is cut off, the whole commands before it are the path."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.path_strategies import Command, commands, starts, tokens_of
from wordmask.model.decoding.path_tokens import parse_path

quick = settings(derandomize=True, deadline=None, max_examples=60)


def draws(path: list[Command]) -> bool:
    return any(letter in "LlCc" for letter, _ in path)


def text_of(command: Command) -> str:
    """Facts, section 5, word by word."""
    letter, values = command
    written = []
    for value in values:
        text = f"{value / 960:.3f}"
        while text.endswith("0"):
            text = text[:-1]
        written.append(text.removesuffix("."))
    return " ".join([letter, *written])


@given(starts, st.lists(commands, min_size=1, max_size=6))
@quick
def test_well_formed_paths_are_written_out(start: Command, rest: list[Command]) -> None:
    parsed = parse_path([token for command in (start, *rest) for token in tokens_of(command)])
    assert parsed.well_formed == draws(rest)
    assert (parsed.path, parsed.n_commands) == (
        " ".join(map(text_of, (start, *rest))),
        1 + len(rest),
    )


@given(starts, st.lists(commands, min_size=1, max_size=6), st.data())
@quick
def test_a_path_cut_anywhere_keeps_its_whole_commands(
    start: Command, rest: list[Command], data: st.DataObject
) -> None:
    path = (start, *rest)
    tokens = [token for command in path for token in tokens_of(command)]
    cut = data.draw(st.integers(0, len(tokens)))
    whole, used = [], 0
    for command in path:
        used += len(tokens_of(command))
        if used <= cut:
            whole.append(command)
    parsed = parse_path(tokens[:cut])
    assert (parsed.path, parsed.n_commands) == (" ".join(map(text_of, whole)), len(whole))
    between_commands = cut == sum(len(tokens_of(command)) for command in whole)
    assert parsed.well_formed == (between_commands and draws(whole))


def test_further_pairs_of_a_move_are_lines() -> None:
    parsed = parse_path(["M", "0", "0", "960", "0", "960", "960"])
    assert (parsed.path, parsed.problem) == ("M 0 0 1 0 1 1", None)


@pytest.mark.parametrize("number", ["961", "9" * 5000, "0" * 5000])
def test_a_number_out_of_range_ends_the_path_however_long_it_is(number: str) -> None:
    parsed = parse_path(["M", "0", "0", "L", "960", "0", "L", number, "5"])
    assert parsed.path == "M 0 0 L 1 0"
    assert "token 7" in str(parsed.problem)
    assert len(str(parsed.problem)) < 80
