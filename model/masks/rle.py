"""COCO run-length encoding, from the mask's own box.

Runs go down the columns, zeros first; the compressed form writes each count as its difference from
the one before the last, in groups of five bits. Byte for byte what pycocotools writes, without its
Fortran-order copy of the whole mask.
"""

from __future__ import annotations

from typing import TypedDict

import cv2
import numpy as np
from pycocotools import mask as coco

from wordmask.model.masks.compiled import compiled

MAX_PIXELS = 2**32 - 1  # pycocotools counts in 32 bits, unchecked


class Rle(TypedDict):
    """A mask in COCO's form: `size` is [height, width], `counts` the compressed counts as ASCII."""

    size: list[int]
    counts: str


def encode(mask_HW: np.ndarray) -> Rle:
    """Encode a mask (H, W), uint8 of 0/1 in C order."""
    height, width = mask_HW.shape
    x, y, w, h = cv2.boundingRect(mask_HW)
    ends = _run_ends(mask_HW, x, y, w, h)
    counts = _compress(ends, height * width)
    return Rle(size=[height, width], counts=counts.tobytes().decode("ascii"))


def decode(rle: Rle) -> np.ndarray:
    """Decode to a mask (H, W), uint8 of 0/1.

    Raises:
        ValueError: the counts do not fit the size.
    """
    validate(rle)
    pixels = coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    return np.ascontiguousarray(pixels)


def validate(rle: Rle) -> None:
    """Check that the size is two non-negative integers and that the runs add up to its pixels.

    Raises:
        ValueError: it is not so; the message says what does not hold.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not _is_size(size):
        raise ValueError(
            f"rle.size = {size!r}: must be [height, width], two integers that are not negative"
        )
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError(
            "rle.counts: must be an ASCII string of compressed counts, found"
            f" {type(counts).__name__}"
        )
    height, width = rle["size"]
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"rle.size = {[height, width]}: has more than the {MAX_PIXELS} pixels that 32-bit"
            " counts can say"
        )
    total, whole, negative = _total(np.frombuffer(counts.encode("ascii"), np.uint8))
    if not whole:
        raise ValueError(f"rle.counts = {counts[:20]!r}...: ends within a run, or is no RLE text")
    if negative:
        raise ValueError(f"rle.counts = {counts[:20]!r}...: a run is negative")
    if total != pixels:
        raise ValueError(
            f"rle.counts: runs add up to {total} pixels, but size {[height, width]} has {pixels}"
        )


def _is_size(size: object) -> bool:
    if not isinstance(size, list | tuple) or len(size) != 2:
        return False
    return all(isinstance(extent, int | np.integer) and extent >= 0 for extent in size)


@compiled
def _run_ends(mask: np.ndarray, x0: int, y0: int, w: int, h: int) -> np.ndarray:
    """Return the column-major indices at which the value changes; the first is from 0 to 1."""
    height = mask.shape[0]
    ends = np.empty(w * (h + 2) + 1, np.int64)
    n = 0
    value = 0
    for x in range(x0, x0 + w):
        top = x * height
        if y0 > 0 and value == 1:
            ends[n] = top
            n += 1
            value = 0
        for y in range(y0, y0 + h):
            if mask[y, x] != value:
                ends[n] = top + y
                n += 1
                value = 1 - value
        if y0 + h < height and value == 1:
            ends[n] = top + y0 + h
            n += 1
            value = 0
    if value == 1:
        ends[n] = (x0 + w) * height
        n += 1
    return ends[:n]


@compiled
def _compress(ends: np.ndarray, pixels: int) -> np.ndarray:
    """Turn changes into compressed counts.

    A last change at the last pixel is the end, not a further run.
    """
    n = len(ends)
    if n > 0 and ends[n - 1] == pixels:
        n -= 1
    out = np.empty(7 * (n + 1), np.uint8)
    length = 0
    counts = np.empty(n + 1, np.int64)
    start = 0
    for i in range(n + 1):
        end = pixels
        if i < n:
            end = ends[i]
        counts[i] = end - start
        start = end
        value = counts[i]
        if i > 2:
            value -= counts[i - 2]
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != -1 if group & 0x10 else value != 0
            if more:
                group |= 0x20
            out[length] = group + 48
            length += 1
    return out[:length]


@compiled
def _total(text: np.ndarray) -> tuple[int, bool, bool]:
    """Add up compressed counts.

    Returns:
        The sum; whether the text ends with a whole count and has only legal characters; whether
        any count is negative.
    """
    total = 0
    negative = False
    before, last = 0, 0  # the last two counts
    index = 0  # of the current count
    value, shift = 0, 0  # what is read of it, and its bits
    for i in range(len(text)):
        group = text[i] - 48
        if group < 0 or group > 63 or shift > 30:
            return total, False, negative
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value |= -1 << shift
        if index > 2:
            value += before
        negative |= value < 0
        total += value
        before, last = last, value
        value, shift = 0, 0
        index += 1
    return total, shift == 0 and len(text) > 0, negative
