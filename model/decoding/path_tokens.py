"""Path tokens to a path string, strictly (facts, section 5).

The published engine groups numbers in pairs and drops what is left over; here an incomplete
command, an odd number, an unknown token or a path that does not start with M is reported, and the
whole commands before it are salvaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PATH_SCALE = 960  # integers of a path are in a 960 x 960 box
MINUS = "-"
MAX_DIGITS = 16  # a longer number token is out of range, whatever it says
ARITY = {"M": 2, "L": 2, "C": 6, "Z": 0}  # numbers per command; arguments may repeat, as in SVG


@dataclass(frozen=True, kw_only=True)
class ParsedPath:
    """`path` holds the whole commands, in unit of box, "" if there is none. `problem` says what
    ended it early, if anything did.
    """

    path: str
    problem: str | None
    n_commands: int

    @property
    def well_formed(self) -> bool:
        return self.problem is None


def format_number(value: float) -> str:
    """Three decimals without trailing zeros: 0.5, 1, -0.003."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def parse_path(tokens: Sequence[str]) -> ParsedPath:
    """Parse the decoder's path tokens: commands M L C (either case) and z, integers 0-960, "-"
    before a number.

    Never raises: whatever the decoder wrote, the whole commands before the first problem are the
    path. A path without a closing z is well formed (filling closes it); one that is nothing but
    moves has nothing to fill and is not, closed or open.
    """
    commands: list[str] = []
    drawn, at = 0, 0
    problem = None
    while at < len(tokens):
        step = _command(tokens, at, first=not commands)
        if step.text:
            commands.append(step.text)
            drawn += (
                tokens[at] not in "MmZz" or len(step.text.split()) > 3
            )  # further pairs of a move are lines, as in SVG
        if step.problem:
            problem = step.problem
            break
        at = step.end
    if problem is None and drawn == 0:
        problem = "the path is empty" if not commands else "the path is nothing but a move"
    return ParsedPath(path=" ".join(commands), problem=problem, n_commands=len(commands))


@dataclass(frozen=True)
class _Step:
    """One command: its text ("" if not even one set of arguments is whole), where the next begins,
    what was wrong.
    """

    text: str
    end: int
    problem: str | None = None


def _command(tokens: Sequence[str], at: int, *, first: bool) -> _Step:
    letter = tokens[at]
    arity = ARITY.get(letter.upper()) if len(letter) == 1 else None
    if arity is None:
        expected = "the path to start with M" if first else "a command M, L, C or z"
        return _Step("", at, f"token {at}: expected {expected}, found {letter!r}")
    if first and letter not in "Mm":
        return _Step("", at, f"token {at}: the path starts with {letter!r}, not with M")
    numbers, end, problem = _numbers(tokens, at + 1)
    if arity == 0:
        extra = (
            f"token {at + 1}: {letter} takes no number, found {tokens[at + 1]!r}"
            if end > at + 1 or problem
            else None
        )
        return _Step(letter, at + 1, extra)
    whole = len(numbers) // arity * arity
    if problem is None and (whole < len(numbers) or whole == 0):
        problem = (
            f"token {at}: {letter} takes {arity} numbers, or a multiple of that, found"
            f" {len(numbers)}"
        )
    text = (
        " ".join([letter, *(format_number(n / PATH_SCALE) for n in numbers[:whole])])
        if whole
        else ""
    )
    return _Step(text, end, problem)


def _numbers(tokens: Sequence[str], at: int) -> tuple[list[int], int, str | None]:
    """The integers from `at` on, where they end, and what is wrong with the token there, if
    anything is.
    """
    numbers: list[int] = []
    while at < len(tokens):
        negative = tokens[at] == MINUS
        digits = at + negative
        if digits >= len(tokens) or not _is_number(tokens[digits]):
            return numbers, at, f"token {at}: a minus sign without a number" if negative else None
        value = int(tokens[digits][:MAX_DIGITS])  # Python refuses to read thousands of digits
        if value > PATH_SCALE or len(tokens[digits]) > MAX_DIGITS:
            return (
                numbers,
                at,
                f"token {digits}: {tokens[digits][:MAX_DIGITS]} is outside 0-{PATH_SCALE}",
            )
        numbers.append(-value if negative else value)
        at = digits + 1
    return numbers, at, None


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdigit()
