"""The outline of a mask as a path: exact, along the cracks between pixels.

Pixel i covers [i, i + 1]. Outer outlines run clockwise as seen on the screen, holes the other way
round, so that both the nonzero and the even-odd rule give the mask back. Source: docs/model.md,
Mask cleanup and outline.
"""

from __future__ import annotations

import cv2
import numpy as np

from wordmask.model.masks.compiled import compiled

# Directions right, down, left, up; the pixel ahead to the right and to the left of a vertex, as
# (dy, dx) to its index.
_STEP = np.array(
    [
        [0, 1],
        [1, 0],
        [0, -1],
        [-1, 0],
    ]
)
_RIGHT_AHEAD = np.array(
    [
        [0, 0],
        [0, -1],
        [-1, -1],
        [-1, 0],
    ]
)
_LEFT_AHEAD = np.array(
    [
        [-1, 0],
        [0, 0],
        [0, -1],
        [-1, -1],
    ]
)


def trace(mask_HW: np.ndarray) -> str:
    """Return the outlines of a mask (H, W), uint8 of 0/1, as a path in pixels.

    Each outline is an absolute M, then h and v steps in turn, then z. An empty mask gives "".
    """
    x, y, w, h = cv2.boundingRect(mask_HW)
    if w == 0:
        return ""
    framed = np.zeros((h + 2, w + 2), np.uint8)
    framed[1:-1, 1:-1] = mask_HW[y : y + h, x : x + w]
    numbers, ends = _outlines(framed)
    values = numbers.tolist()
    parts: list[str] = []
    start = 0
    for end in ends.tolist():
        parts.append(f"M {values[start] + x - 1} {values[start + 1] + y - 1}")
        parts += [f"{'hv'[i % 2]} {step}" for i, step in enumerate(values[start + 2 : end])]
        parts.append("z")
        start = end
    return " ".join(parts)


@compiled
def _outlines(framed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outlines of a mask with an empty frame of one pixel, one after another.

    Returns:
        The numbers of each outline: x, y of the first vertex, then steps right (or left), down (or
        up) in turn, without the last, which closes. And the index at which each outline ends.
    """
    height, width = framed.shape
    seen = np.zeros((height, width), np.bool_)  # top edges of pixels, walked to the right
    numbers = np.empty(256, np.int64)
    ends = [0 for _ in range(0)]  # an empty list whose element type numba can tell
    n = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if framed[y, x] == 0 or framed[y - 1, x] != 0 or seen[y, x]:
                continue
            # In reading order the first unseen top edge of an outline is a corner: its left
            # neighbour would belong to the same run.
            vy = y
            vx = x
            direction = 0
            run = 0
            numbers = _append(numbers, n, x)
            numbers = _append(numbers, n + 1, y)
            n += 2
            while True:
                if direction == 0:
                    seen[vy, vx] = True
                vy += _STEP[direction, 0]
                vx += _STEP[direction, 1]
                run += 1
                turned = _next_direction(framed, vy, vx, direction)
                if vy == y and vx == x and turned == 0:
                    break
                if turned != direction:
                    numbers = _append(numbers, n, run if direction < 2 else -run)
                    n += 1
                    direction = turned
                    run = 0
            ends.append(n)
    return numbers[:n], np.array(ends)


@compiled
def _next_direction(framed: np.ndarray, y: int, x: int, direction: int) -> int:
    """Return the direction in which an outline goes on from a vertex."""
    right_y = y + _RIGHT_AHEAD[direction, 0]
    right_x = x + _RIGHT_AHEAD[direction, 1]
    if framed[right_y, right_x] == 0:
        return (direction + 1) % 4
    left_y = y + _LEFT_AHEAD[direction, 0]
    left_x = x + _LEFT_AHEAD[direction, 1]
    if framed[left_y, left_x] != 0:
        return (direction + 3) % 4
    return direction


@compiled
def _append(numbers: np.ndarray, n: int, value: int) -> np.ndarray:
    """Return `numbers` with `value` at index n, moved to a larger block if it was full."""
    if n == len(numbers):
        larger = np.empty(2 * n, np.int64)
        larger[:n] = numbers
        numbers = larger
    numbers[n] = value
    return numbers


def scale_path(path: str, box_xywh: tuple[int, int, int, int]) -> str:
    """Return a traced path in unit of a box, with absolute commands.

    Args:
        path: exact or smooth, in pixels; "" stays "".
        box_xywh: (x, y, w, h) of the box, pixels.
    """
    left, top, width, height = box_xywh
    parts: list[str] = []
    x = y = 0.0
    command = ""
    index = 0  # of a number among those of its command
    for token in path.split():
        if token.isalpha():
            command, index = token, 0
            parts.append(_absolute_letter(command))
            continue
        if command == "h":
            x += float(token)
        elif command == "v":
            y += float(token)
        elif index % 2 == 0:
            x = float(token)
        else:
            y = float(token)
        if command == "h" or (command != "v" and index % 2 == 0):
            parts.append(_unit(x - left, width))
        else:
            parts.append(_unit(y - top, height))
        index += 1
    return " ".join(parts)


def _absolute_letter(command: str) -> str:
    if command in "hv":
        return command.upper()
    return command


def _unit(offset: float, extent: int) -> str:
    return f"{offset / extent:.6f}".rstrip("0").rstrip(".")
