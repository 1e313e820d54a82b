"""Random paths as commands of letter and numbers, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from wordmask.model.decoding.path_tokens import PATH_SCALE

Command = tuple[str, list[int]]
numbers = st.integers(-PATH_SCALE, PATH_SCALE)
commands = st.one_of(
    st.tuples(st.sampled_from("Ll"), st.lists(numbers, min_size=2, max_size=2)),
    st.tuples(st.sampled_from("Cc"), st.lists(numbers, min_size=6, max_size=6)),
    st.tuples(st.sampled_from("Zz"), st.just([])),
)
starts = st.tuples(st.sampled_from("Mm"), st.lists(numbers, min_size=2, max_size=2))


def tokens_of(command: Command) -> list[str]:
    """Return the tokens that write a command: its letter, then a sign and digits per number."""
    letter, values = command
    tokens = [letter]
    for value in values:
        if value < 0:
            tokens.append("-")
        tokens.append(str(abs(value)))
    return tokens
