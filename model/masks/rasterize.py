"""A path to a mask: nonzero rule, area coverage over one half.

The reference renders antialiased at twice the size, averages 2 x 2 pixels and thresholds. The same
is done here on the path's own box only, with the same test points. Pixel i covers [i, i + 1].
Formulas in docs/model.md, Rasterizer.
"""

from __future__ import annotations

from math import ceil, floor, isfinite

import numpy as np

from wordmask.model.masks.compiled import compiled
from wordmask.model.masks.flatten import clipped, flatten

# The reference's pixels are cells here, half a pixel wide. Each tests CELL x CELL points and adds
# POINT for each inside, but a cell's whole row adds one less in its last row, so that a full cell's
# alpha is 255 and not 256.
CELL = 4
SUB = 2 * CELL  # test points per pixel along each axis
POINT = 256 // CELL**2
FULL_ROW = CELL * POINT
HALF = 2 * 255  # half of four cells' alpha
FLATNESS = 0.01  # pixels a flattened curve may be off
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
    cx, cy, w, h = (clipped(value) for value in bbox)
    left = (cx - w / 2) * width
    top = (cy - h / 2) * height
    origin = np.array([left, top])
    scale = np.array([w * width, h * height])
    side = max(abs(scale).max(), 1e-9)
    tolerance = FLATNESS / side
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
        edges = np.concatenate([_edges(outline) for outline in outlines])
        _scan(edges, mask, top, bottom, left, right)
    return mask


def _edges(outline: np.ndarray) -> np.ndarray:
    """Return the edges (N, 4) of a closed polygon: x0, y0, x1, y1."""
    following = np.roll(outline, -1, axis=0)
    return np.hstack([outline, following])


def _covered(low: float, high: float, extent: int) -> tuple[int, int]:
    """Return the pixels first..last of 0..extent that low..high touches."""
    low = max(low, 0)
    high = min(high, extent)
    first = max(floor(low), 0)
    last = min(ceil(high), extent)
    return first, last


@compiled
def _first_row(y: float, low: int, high: int) -> int:
    """Return the first test row at or below y, within low..high.

    Row j lies at (j + 0.5) / SUB pixels.
    """
    return int(min(max(np.ceil(y * SUB - 0.5), low), high))


@compiled
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
            start = ends[row]
            end = ends[row + 1]
            last_of_cell = row % CELL == CELL - 1
            full = FULL_ROW - last_of_cell
            _add_row(crossing, turn, start, end, alpha, full, left, right)
        cell = 0
        for x in range(right - left):
            cell += alpha[2 * x]
            total = cell
            cell += alpha[2 * x + 1]
            mask[y, left + x] = total + cell > HALF


@compiled
def _crossings(edges: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where edges cross the test rows low..high.

    Returns:
        `ends`: row j's crossings are ends[j]..ends[j + 1], counted from `low`; `crossing`: x of
        each, pixels; `turn`: 1 for an edge that goes down, -1 for one that goes up.
    """
    ends = _crossing_ends(edges, low, high)
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
        first = _first_row(y0, low, high)
        last = _first_row(y1, low, high)
        for row in range(first, last):
            y = (row + 0.5) / SUB
            index = free[row - low]
            free[row - low] += 1
            crossing[index] = x0 + (y - y0) * slope
            turn[index] = direction
    return ends, crossing, turn


@compiled
def _crossing_ends(edges: np.ndarray, low: int, high: int) -> np.ndarray:
    """Count the crossings of each test row, added up from `low` on."""
    counts = np.zeros(high - low + 1, np.int64)
    for e in range(len(edges)):
        y0 = edges[e, 1]
        y1 = edges[e, 3]
        first = _first_row(min(y0, y1), low, high)
        last = _first_row(max(y0, y1), low, high)
        for row in range(first, last):
            counts[row - low + 1] += 1
    return np.cumsum(counts)


@compiled
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
        x = crossing[i]
        t = turn[i]
        j = i
        while j > start and crossing[j - 1] > x:
            crossing[j] = crossing[j - 1]
            turn[j] = turn[j - 1]
            j -= 1
        crossing[j] = x
        turn[j] = t
    first = left * SUB
    last = right * SUB
    winding = 0
    begin = 0
    for i in range(start, end):
        at_or_after = np.ceil(crossing[i] * SUB - 0.5)
        column = int(min(max(at_or_after, first), last))
        if winding == 0:
            begin = column
        winding += turn[i]
        if winding == 0 and column > begin:
            _add_span(alpha, begin - first, column - first, full)


@compiled
def _add_span(alpha: np.ndarray, begin: int, end: int, full: int) -> None:
    """Add points begin..end of a row: POINT for each in a cell partly covered, else `full`."""
    # Cells first + 1 .. last - 1 are wholly covered; last may lie past the end.
    first = begin // CELL
    last = end // CELL
    if first == last:
        added = (end - begin) * POINT
        alpha[first] += added
        alpha[first + 1] -= added
        return
    head = full
    if begin % CELL != 0:
        next_cell = (first + 1) * CELL
        head = (next_cell - begin) * POINT
    tail = (end % CELL) * POINT
    alpha[first] += head
    alpha[first + 1] += full - head
    alpha[last] += tail - full
    if last + 1 < len(alpha):
        alpha[last + 1] -= tail
