"""Path tokens to a path string, strictly; see docs/model.md, Prompt and path tokens.

The published engine groups numbers in pairs and drops what is left over. Here an incomplete
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
    """The whole commands of a path, in unit of box.

    Args:
        path: the commands as SVG text, "" if there is none.
        problem: what ended the path early, if anything did.
        n_commands: how many commands there are.
    """

    path: str
    problem: str | None
    n_commands: int

    @property
    def well_formed(self) -> bool:
        """Return whether nothing was wrong."""
        return self.problem is None


def format_number(value: float) -> str:
    """Return three decimals without trailing zeros: 0.5, 1, -0.003."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def parse_path(tokens: Sequence[str]) -> ParsedPath:
    """Parse the decoder's path tokens: commands M L C (either case) and z, integers 0-960, minus.

    Never raises: whatever the decoder wrote, the whole commands before the first problem are the
    path. A path without a closing z is well formed (filling closes it). One that is nothing but
    moves has nothing to fill and is not, closed or open.
    """
    commands: list[str] = []
    draws_something = False
    problem = None
    start = 0
    while start < len(tokens) and problem is None:
        command = _parse_command(tokens, start, first=not commands)
        if command.text:
            commands.append(command.text)
            draws_something |= command.draws
        problem = command.problem
        start = command.end
    if problem is None and not commands:
        problem = "the path is empty"
    elif problem is None and not draws_something:
        problem = "the path is nothing but a move"
    return ParsedPath(path=" ".join(commands), problem=problem, n_commands=len(commands))


@dataclass(frozen=True)
class _Command:
    """One command of a path.

    Args:
        text: letter and numbers, "" if not even one set of arguments is whole.
        end: index of the token after it.
        problem: what was wrong with it, if anything was.
    """

    text: str
    end: int
    problem: str | None = None

    @property
    def draws(self) -> bool:
        """Return whether there is a line: further pairs of a move are lines, as in SVG."""
        return self.text[0] not in "MmZz" or len(self.text.split()) > 3


def _parse_command(tokens: Sequence[str], start: int, *, first: bool) -> _Command:
    letter = tokens[start]
    problem = _wrong_letter(letter, start, first=first)
    if problem is not None:
        return _Command("", start, problem)
    arity = ARITY[letter.upper()]
    numbers, end, problem = _parse_numbers(tokens, start + 1)
    if arity == 0:
        return _Command(letter, start + 1, _extra_number(tokens, start, end, problem))
    n_whole = len(numbers) // arity * arity
    if problem is None and (n_whole < len(numbers) or n_whole == 0):
        problem = (
            f"token {start}: {letter} takes {arity} numbers, or a multiple of that, found"
            f" {len(numbers)}"
        )
    if n_whole == 0:
        return _Command("", end, problem)
    formatted = [format_number(number / PATH_SCALE) for number in numbers[:n_whole]]
    return _Command(" ".join([letter, *formatted]), end, problem)


def _wrong_letter(letter: str, start: int, *, first: bool) -> str | None:
    """Return what is wrong with a token where a command is expected, if anything is."""
    is_command = len(letter) == 1 and letter.upper() in ARITY
    if not is_command and first:
        return f"token {start}: expected the path to start with M, found {letter!r}"
    if not is_command:
        return f"token {start}: expected a command M, L, C or z, found {letter!r}"
    if first and letter not in "Mm":
        return f"token {start}: the path starts with {letter!r}, not with M"
    return None


def _extra_number(tokens: Sequence[str], start: int, end: int, problem: str | None) -> str | None:
    """Return what is wrong with a z at `start` if numbers up to `end`, or a problem, follow it."""
    if end == start + 1 and problem is None:
        return None
    return f"token {start + 1}: {tokens[start]} takes no number, found {tokens[start + 1]!r}"


def _parse_numbers(tokens: Sequence[str], start: int) -> tuple[list[int], int, str | None]:
    """Return the integers from `start` on, where they end, and what is wrong there, if anything."""
    numbers: list[int] = []
    end = start
    while end < len(tokens):
        negative = tokens[end] == MINUS
        index = end + negative
        is_number = index < len(tokens) and _is_number(tokens[index])
        if negative and not is_number:
            return numbers, end, f"token {end}: a minus sign without a number"
        if not is_number:
            return numbers, end, None
        digits = tokens[index]
        value = int(digits[:MAX_DIGITS])  # Python refuses to read thousands of digits
        if value > PATH_SCALE or len(digits) > MAX_DIGITS:
            problem = f"token {index}: {digits[:MAX_DIGITS]} is outside 0-{PATH_SCALE}"
            return numbers, end, problem
        numbers.append(-value if negative else value)
        end = index + 1
    return numbers, end, None


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdigit()
