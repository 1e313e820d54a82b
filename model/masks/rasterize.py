"""A path to a mask: nonzero rule, area coverage over one half (facts, section 6).

The reference renders antialiased at twice the size, averages 2 x 2 pixels and thresholds. The same
is done here on the path's own box only, with the same test points. Pixel i covers [i, i + 1].
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
# numbers are clipped to +- this: beyond any image, yet sums and products of them stay finite
FAR = 1e9
_TOKEN = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ARITY = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Z": 0}
Point = tuple[float, float]


def rasterize(
    path: str, bbox: tuple[float, float, float, float], height: int, width: int
) -> np.ndarray:
    """Fill a path drawn by the decoder: (height, width) uint8 of 0/1.

    Args:
        path: SVG commands M L C Z (either case), in unit of box.
        bbox: (x_centre, y_centre, w, h) of that box, in unit of image. The path may leave the box,
        and the box the image.

    Numbers beyond +-FAR, in the path or the box, are clipped to it.

    Raises:
        ValueError: the path text is malformed or a number is not finite.
    """
    if not all(map(isfinite, bbox)):
        raise ValueError(f"bbox = {bbox}: must be finite numbers")
    cx, cy, w, h = (_clipped(value) for value in bbox)
    scale = np.array([w * width, h * height])
    origin = np.array([(cx - w / 2) * width, (cy - h / 2) * height])
    return _fill(
        [
            outline * scale + origin
            for outline in flatten(path, tolerance=FLATNESS / max(abs(scale).max(), 1e-9))
        ],
        height,
        width,
    )


def rasterize_pixels(path: str, height: int, width: int) -> np.ndarray:
    """Fill a path in pixels, such as `mask_trace.trace` writes: (height, width) uint8 of 0/1.
    Raises ValueError as above.
    """
    return _fill(flatten(path, tolerance=FLATNESS), height, width)


def flatten(path: str, tolerance: float) -> list[np.ndarray]:
    """Subpaths as closed polygons (N, 2), curves replaced by chords at most `tolerance` away (same
    unit as the path).

    Understands M L H V C Z, absolute and relative, with repeated arguments as in SVG.
    """
    outlines: list[list[Point]] = []
    here: Point = (0.0, 0.0)
    for letter, numbers in _commands(path):
        if not outlines and letter not in "Mm":
            raise ValueError(f"path {path[:40]!r}: starts with {letter}, not with M")
        if letter in "Zz":
            here = outlines[-1][0]
            outlines.append([here])
            continue
        arity = _ARITY[letter.upper()]
        for start in range(0, len(numbers), arity):
            points = _absolute(letter, numbers[start : start + arity], here)
            if letter in "Mm" and start == 0:
                outlines.append([])
            outlines[-1] += points if len(points) == 1 else _chords(here, *points, tolerance)
            here = points[-1]
    return [np.array(outline) for outline in outlines if len(outline) >= 3]


def _commands(path: str) -> list[tuple[str, list[float]]]:
    commands: list[tuple[str, list[float]]] = []
    if rest := _TOKEN.sub("", path).replace(",", "").strip():
        raise ValueError(f"path {path[:40]!r}: {rest[:20]!r} is neither a command nor a number")
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
        arity = _ARITY[letter.upper()]
        if (len(numbers) % arity or not numbers) if arity else numbers:
            raise ValueError(
                f"path {path[:40]!r}: {letter} takes {arity} numbers, or a multiple of that, found"
                f" {len(numbers)}"
            )
    return commands


def _clipped(value: float) -> float:
    return min(max(value, -FAR), FAR)


def _absolute(letter: str, numbers: list[float], here: Point) -> list[Point]:
    x, y = here if letter.islower() else (0.0, 0.0)
    if letter in "Hh":
        return [(x + numbers[0], here[1])]
    if letter in "Vv":
        return [(here[0], y + numbers[0])]
    return [(x + numbers[i], y + numbers[i + 1]) for i in range(0, len(numbers), 2)]


def _chords(p0: Point, p1: Point, p2: Point, p3: Point, tolerance: float) -> list[Point]:
    """Points of a cubic curve after p0, MAX_CHORDS at most. A chord over 1/n of it is at most 0.75
    * bend / n**2 away.
    """
    bend = max(
        hypot(p0[0] - 2 * p1[0] + p2[0], p0[1] - 2 * p1[1] + p2[1]),
        hypot(p1[0] - 2 * p2[0] + p3[0], p1[1] - 2 * p2[1] + p3[1]),
    )
    count = min(max(ceil(sqrt(0.75 * bend / tolerance)), 1), MAX_CHORDS)
    t = np.linspace(0, 1, count + 1)[1:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return [(float(x), float(y)) for x, y in weights @ np.array([p0, p1, p2, p3])]


def _fill(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    if not outlines:
        return mask
    points = np.concatenate(outlines)
    assert np.isfinite(points).all()  # compiled code would write outside its arrays
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    top, bottom = max(floor(max(y0, 0)), 0), min(ceil(min(y1, height)), height)
    left, right = max(floor(max(x0, 0)), 0), min(ceil(min(x1, width)), width)
    if top < bottom and left < right:
        edges = np.concatenate(
            [np.hstack([outline, np.roll(outline, -1, axis=0)]) for outline in outlines]
        )
        _scan(edges, mask, top, bottom, left, right)
    return mask


@numba.njit(cache=True, nogil=True)
def _first_row(y: float, low: int, high: int) -> int:
    """First test row at or below y, within low..high. Row j lies at (j + 0.5) / SUB pixels."""
    return int(min(max(np.ceil(y * SUB - 0.5), low), high))


@numba.njit(cache=True, nogil=True)
def _scan(
    edges: np.ndarray, mask: np.ndarray, top: int, bottom: int, left: int, right: int
) -> None:
    """Fill rows top..bottom, columns left..right of the mask. `edges` (N, 4): x0, y0, x1, y1 in
    pixels.
    """
    low, high = top * SUB, bottom * SUB
    ends = np.zeros(high - low + 1, np.int64)
    for e in range(len(edges)):
        y0, y1 = edges[e, 1], edges[e, 3]
        for row in range(_first_row(min(y0, y1), low, high), _first_row(max(y0, y1), low, high)):
            ends[row - low + 1] += 1
    ends = np.cumsum(ends)
    free = ends[:-1].copy()
    crossing = np.empty(ends[-1], np.float64)
    turn = np.empty(ends[-1], np.int8)
    for e in range(len(edges)):
        x0, y0, x1, y1 = edges[e]
        direction = 1
        if y0 > y1:
            x0, y0, x1, y1, direction = x1, y1, x0, y0, -1
        slope = (x1 - x0) / (y1 - y0) if y1 > y0 else 0.0
        for row in range(_first_row(y0, low, high), _first_row(y1, low, high)):
            crossing[free[row - low]] = x0 + ((row + 0.5) / SUB - y0) * slope
            turn[free[row - low]] = direction
            free[row - low] += 1
    alpha = np.zeros(
        2 * (right - left) + 1, np.int32
    )  # differences of the cells' alpha along the pixels of a row
    for y in range(top, bottom):
        alpha[:] = 0
        for row in range(y * SUB - low, (y + 1) * SUB - low):
            full = FULL_ROW - (row % CELL == CELL - 1)
            _add_row(crossing, turn, ends[row], ends[row + 1], alpha, full, left, right)
        cell, total = 0, 0
        for x in range(right - left):
            cell += alpha[2 * x]
            total = cell
            cell += alpha[2 * x + 1]
            mask[y, left + x] = total + cell > HALF


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
    """Add the points of one row that have a nonzero winding number."""
    for i in range(start + 1, end):
        x, t, j = crossing[i], turn[i], i
        while j > start and crossing[j - 1] > x:
            crossing[j], turn[j] = crossing[j - 1], turn[j - 1]
            j -= 1
        crossing[j], turn[j] = x, t
    winding, begin = 0, 0
    for i in range(start, end):
        column = int(min(max(np.ceil(crossing[i] * SUB - 0.5), left * SUB), right * SUB))
        if winding == 0:
            begin = column
        winding += turn[i]
        if winding == 0 and column > begin:
            _add_span(alpha, begin - left * SUB, column - left * SUB, full)


@numba.njit(cache=True, nogil=True)
def _add_span(alpha: np.ndarray, begin: int, end: int, full: int) -> None:
    """Add points begin..end of a row: `POINT` for each in a cell partly covered, `full` for a cell
    wholly covered.
    """
    first, last = (
        begin // CELL,
        end // CELL,
    )  # cells first + 1 .. last - 1 are whole; last may lie past the end
    if first == last:
        alpha[first] += (end - begin) * POINT
        alpha[first + 1] -= (end - begin) * POINT
        return
    head = full if begin % CELL == 0 else ((first + 1) * CELL - begin) * POINT
    tail = (end % CELL) * POINT
    alpha[first] += head
    alpha[first + 1] += full - head
    alpha[last] += tail - full
    if last + 1 < len(alpha):
        alpha[last + 1] -= tail
