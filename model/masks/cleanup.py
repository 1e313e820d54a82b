"""Cleaning of masks: holes filled, islands dropped, edges closed; and the refiner's crop box
(facts, sections 7 and 8).

Everything is 8-connected. Only the mask's own box, with a border, is looked at; what lies outside
is background.
"""

from __future__ import annotations

import cv2
import numpy as np

# pixels around the mask's box: the close reaches one, and one more shows that background goes on
PAD = 2
CLOSE_KERNEL = np.ones((3, 3), np.uint8)


def clean(mask_HW: np.ndarray, *, area_fraction: float = 0.0015) -> np.ndarray:
    """Fill background components, then drop islands, smaller than `area_fraction` of the image;
    then a 3 x 3 close.

    Strictly smaller; background components at the border count too. Where all islands are small the
    largest stays. Takes and returns (H, W) uint8 of 0/1; the input is not changed.
    """
    height, width = mask_HW.shape
    x, y, w, h = cv2.boundingRect(mask_HW)
    if w == 0:
        return mask_HW.copy()
    limit = area_fraction * height * width
    x0, y0, x1, y1 = (
        max(x - PAD, 0),
        max(y - PAD, 0),
        min(x + w + PAD, width),
        min(y + h + PAD, height),
    )
    # OpenCV numbers components by 2 x 2 blocks, row by row. From an even row they come in the order
    # they have in the whole image, which decides among islands that are equally large.
    y0 -= y0 % 2
    if _outside_is_small(mask_HW.shape, (x0, y0, x1, y1), limit):
        x0, y0, x1, y1 = 0, 0, width, height
    cleaned = np.zeros_like(mask_HW)
    window = np.ascontiguousarray(mask_HW[y0:y1, x0:x1])
    # A background component that reaches a side of the window which is not the image's own goes on
    # outside.
    goes_on = (y0 > 0, y1 < height, x0 > 0, x1 < width)
    filled = _fill_holes(window, limit, goes_on)
    kept = _drop_islands(filled, limit)
    # Borders as OpenCV's default: outside counts as background for dilation and as foreground for
    # erosion.
    cleaned[y0:y1, x0:x1] = cv2.morphologyEx(kept, cv2.MORPH_CLOSE, CLOSE_KERNEL)
    return cleaned


def _outside_is_small(
    shape: tuple[int, int], window: tuple[int, int, int, int], limit: float
) -> bool:
    """Whether background that leaves the window could still be a small component of the whole
    image.
    """
    x0, y0, x1, y1 = window
    height, width = shape
    strips = (y0 * width, (height - y1) * width, x0 * height, (width - x1) * height)
    return any(0 < strip < limit for strip in strips)


def _fill_holes(
    window: np.ndarray, limit: float, goes_on: tuple[bool, bool, bool, bool]
) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        1 - window, connectivity=8, ltype=cv2.CV_32S
    )
    if count == 1:
        return window
    fill = stats[:, cv2.CC_STAT_AREA] < limit
    for side, open_side in zip(
        (labels[0], labels[-1], labels[:, 0], labels[:, -1]), goes_on, strict=True
    ):
        if open_side:
            fill[np.unique(side)] = False
    fill[0] = True  # label 0 is the mask itself
    return fill.astype(np.uint8)[labels]


def _drop_islands(window: np.ndarray, limit: float) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        window, connectivity=8, ltype=cv2.CV_32S
    )
    if count <= 2:  # background and at most one island
        return window
    area = stats[:, cv2.CC_STAT_AREA]
    keep = area >= limit
    keep[0] = False
    if not keep.any():
        keep[1 + np.argmax(area[1:])] = True
    return keep.astype(np.uint8)[labels]


def crop_xyxy(
    box: tuple[float, float, float, float], height: int, width: int, margin: float = 0.25
) -> tuple[int, int, int, int]:
    """The refiner's crop (x0, y0, x1, y1) in pixels: a box grown on every side, truncated to
    integers, clipped.

    `box` is (x_min, y_min, x_max, y_max) in unit of image; `margin` is the share of its width and
    height added on each side.
    """
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    grow_x, grow_y = margin * (x1 - x0), margin * (y1 - y0)
    return (
        max(int(x0 - grow_x), 0),
        max(int(y0 - grow_y), 0),
        min(int(x1 + grow_x), width),
        min(int(y1 + grow_y), height),
    )
