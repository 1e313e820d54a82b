"""A path to a mask: nonzero rule, area coverage over one half.

The reference renders antialiased at twice the size, averages 2 x 2 pixels and thresholds. The same
is done here on the path's own box only, with the same test points. Pixel i covers [i, i + 1].
Formulas in docs/model.md, Rasterizer.
"""

from __future__ import annotations

import re
from math import ceil, floor, hypot, isfinite, sqrt

import numba
import numpy as np

# The reference's pixels are cells here, half a pixel wide. Each tests CELL x CELL points and adds
# POINT for each inside, but a cell's whole row adds one less in its last row, so that a full cell's
# alpha is 255 and not 256.
CELL = 4
SUB = 2 * CELL  # test points per pixel along each axis
POINT = 256 // CELL**2
FULL_ROW = CELL * POINT
HALF = 2 * 255  # half of four cells' alpha
FLATNESS = 0.01  # pixels a flattened curve may be off
MAX_CHORDS = 512  # per curve; a quarter circle across a 12 MP photograph takes some 260
# Numbers are clipped to +- this: beyond any image, yet sums and products of them stay finite.
FAR = 1e9
_TOKEN = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ARITY = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Z": 0}
Point = tuple[float, float]
Box = tuple[float, float, float, float]


def rasterize(path: str, bbox: Box, height: int, width: int) -> np.ndarray:
    """Fill a path that the decoder gave, on an image of (height, width) pixels.

    Numbers beyond +-FAR, in the path or the box, are clipped to it.

    Args:
        path: SVG commands M L H V C Z (either case), in unit of box.
        bbox: (x_centre, y_centre, w, h) of that box, in unit of image. The path may leave the box,
            and the box the image.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        The mask (height, width), uint8 of 0/1.

    Raises:
        ValueError: the path text is malformed or a number is not finite.
    """
    if not all(map(isfinite, bbox)):
        raise ValueError(f"bbox = {bbox}: must be finite numbers")
    cx, cy, w, h = (_clipped(value) for value in bbox)
    left = (cx - w / 2) * width
    top = (cy - h / 2) * height
    origin = np.array([left, top])
    scale = np.array([w * width, h * height])
    tolerance = FLATNESS / max(abs(scale).max(), 1e-9)
    outlines = [outline * scale + origin for outline in flatten(path, tolerance)]
    return _fill(outlines, height, width)


def rasterize_pixels(path: str, height: int, width: int) -> np.ndarray:
    """Fill a path in pixels, such as `trace` writes, on an image of (height, width) pixels.

    Returns:
        The mask (height, width), uint8 of 0/1.

    Raises:
        ValueError: as of `rasterize`.
    """
    return _fill(flatten(path, FLATNESS), height, width)


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
        arity = _ARITY[letter.upper()]
        for start in range(0, len(numbers), arity):
            points = _absolute(letter, numbers[start : start + arity], current)
            if letter in "Mm" and start == 0:
                outlines.append([])
            if letter in "Cc":
                outlines[-1] += _chords(current, points, tolerance)
            else:
                outlines[-1] += points
            current = points[-1]
    return [np.array(outline) for outline in outlines if len(outline) >= 3]


def _commands(path: str) -> list[tuple[str, list[float]]]:
    """Return the commands of a path, each with all its numbers."""
    if rest := _TOKEN.sub("", path).replace(",", "").strip():
        raise ValueError(f"path {path[:40]!r}: {rest[:20]!r} is neither a command nor a number")
    commands: list[tuple[str, list[float]]] = []
    for token in _TOKEN.findall(path):
        if token[0].isalpha():
            if token.upper() not in _ARITY:
                raise ValueError(
                    f"path {path[:40]!r}: unknown command {token!r}; known are M L H V C Z"
                )
            commands.append((token, []))
        elif not commands or not isfinite(float(token)):
            raise ValueError(f"path {path[:40]!r}: number {token} is out of place or not finite")
        else:
            commands[-1][1].append(_clipped(float(token)))
    for letter, numbers in commands:
        _check_arity(path, letter, len(numbers))
    return commands


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


def _clipped(value: float) -> float:
    return min(max(value, -FAR), FAR)


def _absolute(letter: str, numbers: list[float], current: Point) -> list[Point]:
    """Return the points of one command, absolute."""
    x, y = (0.0, 0.0)
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
    bend = max(_bend(p0, p1, p2), _bend(p1, p2, p3))
    needed = ceil(sqrt(0.75 * bend / tolerance))
    count = min(max(needed, 1), MAX_CHORDS)
    t = np.linspace(0, 1, count + 1)[1:, None]
    weights = np.hstack(
        [
            (1 - t) ** 3,
            3 * t * (1 - t) ** 2,
            3 * t**2 * (1 - t),
            t**3,
        ]
    )
    curve = weights @ np.array([p0, p1, p2, p3])
    return [(float(x), float(y)) for x, y in curve]


def _bend(before: Point, at: Point, after: Point) -> float:
    """Return the length of the second difference of three points."""
    x = before[0] - 2 * at[0] + after[0]
    y = before[1] - 2 * at[1] + after[1]
    return hypot(x, y)


def _fill(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    if not outlines:
        return mask
    points = np.concatenate(outlines)
    assert np.isfinite(points).all()  # compiled code would write outside its arrays
    x0, y0 = points.min(axis=0)
    x1, y1 = points.max(axis=0)
    top, bottom = _covered(y0, y1, height)
    left, right = _covered(x0, x1, width)
    if top < bottom and left < right:
        edges = [np.hstack([outline, np.roll(outline, -1, axis=0)]) for outline in outlines]
        _scan(np.concatenate(edges), mask, top, bottom, left, right)
    return mask


def _covered(low: float, high: float, extent: int) -> tuple[int, int]:
    """Return the pixels first..last of 0..extent that low..high touches."""
    first = max(floor(max(low, 0)), 0)
    last = min(ceil(min(high, extent)), extent)
    return first, last


@numba.njit(cache=True, nogil=True)
def _first_row(y: float, low: int, high: int) -> int:
    """Return the first test row at or below y, within low..high.

    Row j lies at (j + 0.5) / SUB pixels.
    """
    return int(min(max(np.ceil(y * SUB - 0.5), low), high))


@numba.njit(cache=True, nogil=True)
def _scan(
    edges: np.ndarray, mask: np.ndarray, top: int, bottom: int, left: int, right: int
) -> None:
    """Fill rows top..bottom, columns left..right of the mask, in place.

    `edges` (N, 4): x0, y0, x1, y1 in pixels.
    """
    ends, crossing, turn = _crossings(edges, top * SUB, bottom * SUB)
    # Differences of the cells' alpha along the pixels of a row.
    alpha = np.zeros(2 * (right - left) + 1, np.int32)
    for y in range(top, bottom):
        alpha[:] = 0
        first = (y - top) * SUB
        for row in range(first, first + SUB):
            full = FULL_ROW - (row % CELL == CELL - 1)
            _add_row(crossing, turn, ends[row], ends[row + 1], alpha, full, left, right)
        cell = 0
        for x in range(right - left):
            cell += alpha[2 * x]
            total = cell
            cell += alpha[2 * x + 1]
            mask[y, left + x] = total + cell > HALF


@numba.njit(cache=True, nogil=True)
def _crossings(edges: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where edges cross the test rows low..high.

    Returns:
        `ends`: row j's crossings are ends[j]..ends[j + 1], counted from `low`; `crossing`: x of
        each, pixels; `turn`: 1 for an edge that goes down, -1 for one that goes up.
    """
    ends = np.zeros(high - low + 1, np.int64)
    for e in range(len(edges)):
        upper = min(edges[e, 1], edges[e, 3])
        lower = max(edges[e, 1], edges[e, 3])
        first = _first_row(upper, low, high)
        last = _first_row(lower, low, high)
        for row in range(first, last):
            ends[row - low + 1] += 1
    ends = np.cumsum(ends)
    free = ends[:-1].copy()
    crossing = np.empty(ends[-1], np.float64)
    turn = np.empty(ends[-1], np.int8)
    for e in range(len(edges)):
        x0, y0, x1, y1 = edges[e]
        direction = 1
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
            direction = -1
        slope = 0.0
        if y1 > y0:
            slope = (x1 - x0) / (y1 - y0)
        for row in range(_first_row(y0, low, high), _first_row(y1, low, high)):
            crossing[free[row - low]] = x0 + ((row + 0.5) / SUB - y0) * slope
            turn[free[row - low]] = direction
            free[row - low] += 1
    return ends, crossing, turn


@numba.njit(cache=True, nogil=True)
def _add_row(
    crossing: np.ndarray,
    turn: np.ndarray,
    start: int,
    end: int,
    alpha: np.ndarray,
    full: int,
    left: int,
    right: int,
) -> None:
    """Add the points of one row that have a nonzero winding number.

    Its crossings start..end are sorted first, in place; there are few.
    """
    for i in range(start + 1, end):
        x, t = crossing[i], turn[i]
        j = i
        while j > start and crossing[j - 1] > x:
            crossing[j], turn[j] = crossing[j - 1], turn[j - 1]
            j -= 1
        crossing[j], turn[j] = x, t
    winding = 0
    begin = 0
    for i in range(start, end):
        column = int(min(max(np.ceil(crossing[i] * SUB - 0.5), left * SUB), right * SUB))
        if winding == 0:
            begin = column
        winding += turn[i]
        if winding == 0 and column > begin:
            _add_span(alpha, begin - left * SUB, column - left * SUB, full)


@numba.njit(cache=True, nogil=True)
def _add_span(alpha: np.ndarray, begin: int, end: int, full: int) -> None:
    """Add points begin..end of a row: POINT for each in a cell partly covered, else `full`."""
    # Cells first + 1 .. last - 1 are wholly covered; last may lie past the end.
    first = begin // CELL
    last = end // CELL
    if first == last:
        alpha[first] += (end - begin) * POINT
        alpha[first + 1] -= (end - begin) * POINT
        return
    head = full
    if begin % CELL != 0:
        head = ((first + 1) * CELL - begin) * POINT
    tail = (end % CELL) * POINT
    alpha[first] += head
    alpha[first + 1] += full - head
    alpha[last] += tail - full
    if last + 1 < len(alpha):
        alpha[last + 1] -= tail
