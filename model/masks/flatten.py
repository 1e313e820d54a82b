"""A path's text to closed polygons, with chords in place of curves.

Formulas in docs/model.md, Rasterizer.
"""

from __future__ import annotations

import re
from math import ceil, hypot, isfinite, sqrt

import numpy as np

MAX_CHORDS = 512  # per curve; a quarter circle across a 12 MP photograph takes some 260
# Numbers are clipped to +- this: beyond any image, yet sums and products of them stay finite.
FAR = 1e9
_TOKEN = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ARITY = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Z": 0}
Point = tuple[float, float]


def flatten(path: str, tolerance: float) -> list[np.ndarray]:
    """Return the subpaths as closed polygons (N, 2), with chords in place of curves.

    Understands M L H V C Z, absolute and relative, with repeated arguments as in SVG.

    Args:
        path: the path's text.
        tolerance: how far a chord may be from its curve, in the path's unit.

    Raises:
        ValueError: the path text is malformed or a number is not finite.
    """
    outlines: list[list[Point]] = []
    current: Point = (0.0, 0.0)
    for letter, numbers in _commands(path):
        if not outlines and letter not in "Mm":
            raise ValueError(f"path {path[:40]!r}: starts with {letter}, not with M")
        if letter in "Zz":
            current = outlines[-1][0]
            outlines.append([current])
            continue
        if letter in "Mm":
            outlines.append([])
        outline = outlines[-1]
        for arguments in _chunks(numbers, _ARITY[letter.upper()]):
            points = _absolute(letter, arguments, current)
            if letter in "Cc":
                points = _chords(current, points, tolerance)
            outline += points
            current = points[-1]
    return [np.array(outline) for outline in outlines if len(outline) >= 3]


def _commands(path: str) -> list[tuple[str, list[float]]]:
    """Return the commands of a path, each with all its numbers."""
    rest = _TOKEN.sub("", path)
    rest = rest.replace(",", "")
    rest = rest.strip()
    if rest:
        raise ValueError(f"path {path[:40]!r}: {rest[:20]!r} is neither a command nor a number")
    commands: list[tuple[str, list[float]]] = []
    for token in _TOKEN.findall(path):
        if token[0].isalpha():
            _check_letter(path, token)
            commands.append((token, []))
            continue
        number = float(token)
        if not commands or not isfinite(number):
            raise ValueError(f"path {path[:40]!r}: number {token} is out of place or not finite")
        _, numbers = commands[-1]
        numbers.append(clipped(number))
    for letter, numbers in commands:
        _check_arity(path, letter, len(numbers))
    return commands


def _check_letter(path: str, letter: str) -> None:
    if letter.upper() not in _ARITY:
        raise ValueError(f"path {path[:40]!r}: unknown command {letter!r}; known are M L H V C Z")


def _check_arity(path: str, letter: str, count: int) -> None:
    arity = _ARITY[letter.upper()]
    takes_none = arity == 0
    if takes_none and count == 0:
        return
    if takes_none or count == 0 or count % arity:
        raise ValueError(
            f"path {path[:40]!r}: {letter} takes {arity} numbers, or a multiple of that, found"
            f" {count}"
        )


def _chunks(numbers: list[float], size: int) -> list[list[float]]:
    starts = range(0, len(numbers), size)
    return [numbers[start : start + size] for start in starts]


def clipped(value: float) -> float:
    """Clip a number to +-FAR."""
    return min(max(value, -FAR), FAR)


def _absolute(letter: str, numbers: list[float], current: Point) -> list[Point]:
    """Return the points of one command, absolute."""
    x = 0.0
    y = 0.0
    if letter.islower():
        x, y = current
    if letter in "Hh":
        return [(x + numbers[0], current[1])]
    if letter in "Vv":
        return [(current[0], y + numbers[0])]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [(x + dx, y + dy) for dx, dy in pairs]


def _chords(p0: Point, points: list[Point], tolerance: float) -> list[Point]:
    """Return points of a cubic curve after p0, MAX_CHORDS at most.

    A chord over 1/n of the curve is at most 0.75 * bend / n**2 away.
    """
    p1, p2, p3 = points
    first = _bend(p0, p1, p2)
    second = _bend(p1, p2, p3)
    bend = max(first, second)
    needed = ceil(sqrt(0.75 * bend / tolerance))
    count = min(max(needed, 1), MAX_CHORDS)
    t = np.linspace(0, 1, count + 1)
    controls = np.array([p0, p1, p2, p3])
    curve = _cubic_weights(t[1:, None]) @ controls
    return [(float(x), float(y)) for x, y in curve]


def _cubic_weights(t: np.ndarray) -> np.ndarray:
    """Return the weights (N, 4) of a cubic curve's points at t (N, 1)."""
    left = 1 - t
    weights = [
        left**3,
        3 * t * left**2,
        3 * t**2 * left,
        t**3,
    ]
    return np.hstack(weights)


def _bend(before: Point, at: Point, after: Point) -> float:
    """Return the length of the second difference of three points."""
    x = before[0] - 2 * at[0] + after[0]
    y = before[1] - 2 * at[1] + after[1]
    return hypot(x, y)
