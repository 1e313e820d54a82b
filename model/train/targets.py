"""Training targets: the path of a mask, and what each image patch covers."""

from __future__ import annotations

import cv2
import numpy as np

from wordmask.model.decoding.path_tokens import PATH_SCALE

# Contours are traced on the enlarged mask: OpenCV's run through pixel centres, which lie 1/6 px off
# the true edge then.
UPSAMPLE = 3
LEAST_AREA = 0.01  # of the mask: smaller outlines are left out

Box = tuple[float, float, float, float]


def path_target(mask_HW: np.ndarray, box: Box, max_vertices: int = 16) -> list[str]:
    """Return path tokens of a mask's simplified outline, in 0-960 of its box.

    Each subpath is `M x y L x y x y ... z` from its topmost (then leftmost) vertex; largest first,
    holes as further subpaths of opposite winding. The tolerance grows until at most `max_vertices`
    vertices are left in all.

    Args:
        mask_HW: the mask, not 0 inside.
        box: (x_min, y_min, x_max, y_max) in pixels.
        max_vertices: most vertices of all subpaths together.
    """
    outlines = _simplified(mask_HW, max_vertices)
    if not outlines:
        outlines = [_corners(box)]
    path: list[str] = []
    for outline in outlines:
        path += _subpath(outline, box)
    return path


def _corners(box: Box) -> np.ndarray:
    """Return the corners (4, 2) of a box, clockwise."""
    x0, y0, x1, y1 = box
    xs = (x0, x1, x1, x0)
    ys = (y0, y0, y1, y1)
    return np.array([xs, ys], np.float32).T


def _simplified(mask_HW: np.ndarray, max_vertices: int) -> list[np.ndarray]:
    """Return outlines (N, 2) of at most `max_vertices` vertices in all, largest first."""
    contours = _contours(mask_HW)
    area = max(int(mask_HW.sum()), 1)
    tolerance = 0.03 * np.sqrt(area)
    least_area = LEAST_AREA * area
    while True:
        outlines = []
        for contour in contours:
            outline = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0]
            if _is_drawn(outline, least_area):
                outlines.append(outline)
        n_vertices = sum(map(len, outlines))
        if n_vertices <= max_vertices:
            return outlines
        tolerance *= 1.25


def _is_drawn(outline_N2: np.ndarray, least_area: float) -> bool:
    if len(outline_N2) < 3:
        return False
    area = abs(cv2.contourArea(outline_N2))
    return bool(area >= least_area)


def _contours(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Return outlines in pixels (pixel i covers [i, i + 1]), largest first."""
    tall = mask_HW.repeat(UPSAMPLE, axis=0)
    big = tall.repeat(UPSAMPLE, axis=1)
    padded = np.pad(big, 1)
    found, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = []
    for contour in found:
        if len(contour) >= 3:
            pixels = (contour - 1 + 0.5) / UPSAMPLE
            contours.append(pixels.astype(np.float32))
    return sorted(contours, key=cv2.contourArea, reverse=True)


def _subpath(outline_N2: np.ndarray, box: Box) -> list[str]:
    x0, y0, x1, y1 = box
    corner = (x0, y0)
    sides = (x1 - x0, y1 - y0)
    relative = (outline_N2 - corner) / sides
    scaled = np.rint(relative * PATH_SCALE)
    points = scaled.clip(0, PATH_SCALE).astype(int)
    x, y = points.T
    topmost = np.lexsort((x, y))[0]
    ordered = np.roll(points, -topmost, axis=0)
    numbers = [str(n) for n in ordered.ravel()]
    return ["M", *numbers[:2], "L", *numbers[2:], "z"]


def patch_owners(
    instance_HW: np.ndarray, crop: int, grid: int, min_share: float = 0.25
) -> np.ndarray:
    """Return which object each patch of the whole-image crop mostly shows: (P,) int.

    `instance_HW` holds object indices, -1 for background, as the result does. An object that covers
    less than `min_share` of a patch does not own it.
    """
    shares = patch_shares(instance_HW, crop, grid)
    owner = shares.argmax(axis=0)
    largest = shares.max(axis=0, initial=0)
    return np.where(largest >= min_share, owner, -1)


def patch_shares(instance_HW: np.ndarray, crop: int, grid: int) -> np.ndarray:
    """Return the share of each patch that each object covers, (objects, P) in 0..1."""
    count = int(instance_HW.max()) + 1
    n_patches = grid * grid
    if count == 0:
        return np.zeros((1, n_patches), np.float32)
    indices = instance_HW.astype(np.int16)
    resized = cv2.resize(indices, (crop, crop), interpolation=cv2.INTER_NEAREST)
    patch = crop // grid
    cells = resized.reshape(grid, patch, grid, patch)
    patches = cells.transpose(0, 2, 1, 3).reshape(n_patches, patch * patch)
    shares = np.zeros((count, n_patches), np.float32)
    for index in range(count):
        is_object = patches == index
        shares[index] = is_object.mean(axis=1)
    return shares
