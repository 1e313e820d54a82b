"""Cleaning of masks: fill holes, drop islands, close edges; and the box of the refiner's crop.

Everything is 8-connected. Only the mask's own box, with a border, is searched; what lies outside is
background. Formulas in docs/model.md, Mask cleanup and outline, and Refiner.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

# Pixels around the mask's box: the close reaches one, and one more shows that background goes on.
PAD = 2
CLOSE_KERNEL = np.ones((3, 3), np.uint8)
Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]


class Window(NamedTuple):
    """A part of an image: columns x0..x1 and rows y0..y1, pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


def clean(mask_HW: np.ndarray, *, area_fraction: float = 0.0015) -> np.ndarray:
    """Fill small holes of a mask, drop its small islands, then close its edges by 3 x 3.

    Holes are components of the background, those at the border included. Small is strictly smaller
    than `area_fraction` of the image's area. Where all islands are small the largest stays.

    Args:
        mask_HW: uint8 of 0/1; it is not changed.
        area_fraction: share of the image's area, 0..1.

    Returns:
        The cleaned mask (H, W), uint8 of 0/1.
    """
    height, width = mask_HW.shape
    limit = area_fraction * height * width
    window = _window_around(mask_HW, limit)
    if window is None:
        return mask_HW.copy()
    x0, y0, x1, y1 = window
    part = np.ascontiguousarray(mask_HW[y0:y1, x0:x1])
    # A background component that reaches a side of the window goes on outside, unless the side is
    # the image's own.
    goes_on = (y0 > 0, y1 < height, x0 > 0, x1 < width)
    part = _drop_islands(_fill_holes(part, limit, goes_on), limit)
    cleaned = np.zeros_like(mask_HW)
    # Borders as OpenCV's default: outside counts as background for dilation and as foreground for
    # erosion.
    cleaned[y0:y1, x0:x1] = cv2.morphologyEx(part, cv2.MORPH_CLOSE, CLOSE_KERNEL)
    return cleaned


def _window_around(mask_HW: np.ndarray, limit: float) -> Window | None:
    """Return the part of the image that decides the result, None for an empty mask."""
    height, width = mask_HW.shape
    x, y, w, h = cv2.boundingRect(mask_HW)
    if w == 0:
        return None
    top = max(y - PAD, 0)
    window = Window(
        x0=max(x - PAD, 0),
        # OpenCV numbers components by 2 x 2 blocks, row by row. From an even row they come in the
        # order they have in the whole image, which decides among islands that are equally large.
        y0=top - top % 2,
        x1=min(x + w + PAD, width),
        y1=min(y + h + PAD, height),
    )
    if _outside_may_be_small(mask_HW.shape, window, limit):
        return Window(0, 0, width, height)
    return window


def _outside_may_be_small(shape: tuple[int, ...], window: Window, limit: float) -> bool:
    """Return whether background that leaves the window may be a small component of the image."""
    height, width = shape
    strips = (
        window.y0 * width,
        (height - window.y1) * width,
        window.x0 * height,
        (width - window.x1) * height,
    )
    return any(0 < strip < limit for strip in strips)


def _fill_holes(
    part: np.ndarray, limit: float, goes_on: tuple[bool, bool, bool, bool]
) -> np.ndarray:
    """Fill small components of the background, but none that goes on beyond a side of the window.

    Sides come as top, bottom, left, right.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        1 - part, connectivity=8, ltype=cv2.CV_32S
    )
    if count == 1:
        return part
    fill = stats[:, cv2.CC_STAT_AREA] < limit
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    for side, is_open in zip(sides, goes_on, strict=True):
        if is_open:
            fill[np.unique(side)] = False
    fill[0] = True  # label 0 is the mask itself
    return fill.astype(np.uint8)[labels]


def _drop_islands(part: np.ndarray, limit: float) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        part, connectivity=8, ltype=cv2.CV_32S
    )
    if count <= 2:  # background and at most one island
        return part
    area = stats[:, cv2.CC_STAT_AREA]
    keep = area >= limit
    keep[0] = False
    if not keep.any():
        largest = 1 + np.argmax(area[1:])
        keep[largest] = True
    return keep.astype(np.uint8)[labels]


def crop_xyxy(box: Box, height: int, width: int, margin: float = 0.25) -> PixelBox:
    """Return the refiner's crop of a box: grown on every side, truncated to integers, clipped.

    Args:
        box: (x_min, y_min, x_max, y_max) in unit of image.
        height: of the image, pixels.
        width: of the image, pixels.
        margin: share of the box's width and height that is added on each side.

    Returns:
        (x0, y0, x1, y1) in pixels.
    """
    x0, x1 = box[0] * width, box[2] * width
    y0, y1 = box[1] * height, box[3] * height
    grow_x = margin * (x1 - x0)
    grow_y = margin * (y1 - y0)
    return (
        max(int(x0 - grow_x), 0),
        max(int(y0 - grow_y), 0),
        min(int(x1 + grow_x), width),
        min(int(y1 + grow_y), height),
    )
