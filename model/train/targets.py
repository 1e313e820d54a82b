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
        x0, y0, x1, y1 = box
        outlines = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)]
    return [token for outline in outlines for token in _subpath(outline, box)]


def _simplified(mask_HW: np.ndarray, max_vertices: int) -> list[np.ndarray]:
    """Return outlines (N, 2) of at most `max_vertices` vertices in all, largest first."""
    contours = _contours(mask_HW)
    area = max(int(mask_HW.sum()), 1)
    tolerance = 0.03 * np.sqrt(area)
    while True:
        outlines = [cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] for contour in contours]
        outlines = [outline for outline in outlines if _is_drawn(outline, LEAST_AREA * area)]
        if sum(map(len, outlines)) <= max_vertices:
            return outlines
        tolerance *= 1.25


def _is_drawn(outline_N2: np.ndarray, least_area: float) -> bool:
    return len(outline_N2) >= 3 and abs(cv2.contourArea(outline_N2)) >= least_area


def _contours(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Return outlines in pixels (pixel i covers [i, i + 1]), largest first."""
    big = cv2.resize(mask_HW, None, fx=UPSAMPLE, fy=UPSAMPLE, interpolation=cv2.INTER_NEAREST)
    padded = cv2.copyMakeBorder(big, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    found, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [((c - 1 + 0.5) / UPSAMPLE).astype(np.float32) for c in found if len(c) >= 3]
    return sorted(contours, key=cv2.contourArea, reverse=True)


def _subpath(outline_N2: np.ndarray, box: Box) -> list[str]:
    x0, y0, x1, y1 = box
    relative = (outline_N2 - (x0, y0)) / (x1 - x0, y1 - y0)
    points = np.clip(np.rint(relative * PATH_SCALE), 0, PATH_SCALE).astype(int)
    topmost = np.lexsort((points[:, 0], points[:, 1]))[0]
    points = np.roll(points, -topmost, axis=0)
    numbers = [str(n) for n in points.ravel()]
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
    return np.where(shares.max(axis=0, initial=0) >= min_share, owner, -1)


def patch_shares(instance_HW: np.ndarray, crop: int, grid: int) -> np.ndarray:
    """Return the share of each patch that each object covers, (objects, P) in 0..1."""
    count = int(instance_HW.max()) + 1
    if count == 0:
        return np.zeros((1, grid * grid), np.float32)
    indices = instance_HW.astype(np.int16)
    resized = cv2.resize(indices, (crop, crop), interpolation=cv2.INTER_NEAREST)
    patch = crop // grid
    cells = resized.reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3)
    patches = cells.reshape(grid * grid, patch * patch)
    return np.stack([(patches == index).mean(axis=1) for index in range(count)]).astype(np.float32)
