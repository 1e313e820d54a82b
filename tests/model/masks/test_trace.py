"""Tracing: the path runs once along every crack between mask and background.

The mask is on its right.
"""

from __future__ import annotations

import re

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wordmask.model.masks.trace import scale_path, trace

quick = settings(derandomize=True, deadline=None, max_examples=60)
masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
GRAMMAR = re.compile(r"(M \d+ \d+ (h -?[1-9]\d* v -?[1-9]\d* )+(h -?[1-9]\d* )?z ?)*")
Edge = tuple[tuple[int, int], tuple[int, int]]  # from one corner (x, y) to the next


def walked(path: str) -> list[Edge]:
    """Every step of one pixel that a traced path takes, the closing ones too."""
    edges: list[Edge] = []
    here = start = (0, 0)
    tokens = iter(path.split())
    for command in tokens:
        if command == "M":
            here = start = (int(next(tokens)), int(next(tokens)))
            continue
        along_x = command == "h" or (command == "z" and here[0] != start[0])
        length = (
            int(next(tokens))
            if command in "hv"
            else (start[0] - here[0] if along_x else start[1] - here[1])
        )
        step = int(np.sign(length))
        for _ in range(abs(length)):
            there = (here[0] + step, here[1]) if along_x else (here[0], here[1] + step)
            edges.append((here, there))
            here = there
        if command == "z":
            assert here == start, "z closes along one axis"
    return edges


def cracks(mask: np.ndarray) -> set[Edge]:
    """The sides of pixels beyond which there is background, clockwise as seen on the screen."""
    framed = np.pad(mask, 1)
    found: set[Edge] = set()
    for y, x in np.argwhere(mask).tolist():
        if not framed[y, x + 1]:
            found.add(((x, y), (x + 1, y)))
        if not framed[y + 1, x + 2]:
            found.add(((x + 1, y), (x + 1, y + 1)))
        if not framed[y + 2, x + 1]:
            found.add(((x + 1, y + 1), (x, y + 1)))
        if not framed[y + 1, x]:
            found.add(((x, y + 1), (x, y)))
    return found


@given(masks)
@quick
def test_every_crack_is_walked_once(mask: np.ndarray) -> None:
    edges = walked(trace(mask))
    assert len(edges) == len(set(edges))
    assert set(edges) == cracks(mask)


@given(masks)
@quick
def test_steps_take_turns_and_none_is_empty(mask: np.ndarray) -> None:
    assert GRAMMAR.fullmatch(trace(mask))


@given(masks.filter(lambda mask: mask.any()))
@quick
def test_in_unit_of_its_box_a_path_fills_the_box(mask: np.ndarray) -> None:
    numbers = [
        float(number)
        for number in re.findall(r"[\d.]+", scale_path(trace(mask), cv2.boundingRect(mask)))
    ]
    assert (min(numbers), max(numbers)) == (0, 1)


def test_a_hole_runs_the_other_way() -> None:
    mask = np.ones((3, 3), np.uint8)
    mask[1, 1] = 0
    assert trace(mask) == "M 0 0 h 3 v 3 h -3 z M 1 2 h 1 v -1 h -1 z"


def test_pixels_that_touch_at_a_corner_are_outlined_apart() -> None:
    assert trace(np.eye(2, dtype=np.uint8)) == "M 0 0 h 1 v 1 h -1 z M 1 1 h 1 v 1 h -1 z"


def test_numbers_grow_beyond_the_first_block() -> None:
    """The outlines of a chequered mask need many more numbers than tracing starts with."""
    mask = (np.indices((40, 41)).sum(axis=0) % 2).astype(np.uint8)
    assert set(walked(trace(mask))) == cracks(mask)
