"""Boxes (x_centre, y_centre, w, h) in unit of image."""

from __future__ import annotations

Box = tuple[float, float, float, float]


def clip_box(box: Box) -> Box:
    """Return the part of a box that lies in the image; a side that does is left as it is.

    Source: docs/model.md, Rasterizer.
    """
    cx, cy, w, h = box
    cx, w = _clip_side(cx, w)
    cy, h = _clip_side(cy, h)
    return cx, cy, w, h


def _clip_side(centre: float, size: float) -> tuple[float, float]:
    """Return centre and size of what lies in 0..1, of a side along one axis."""
    centre = min(max(centre, 0.0), 1.0)
    size = min(max(size, 0.0), 1.0)
    low = centre - size / 2
    high = centre + size / 2
    if low >= 0.0 and high <= 1.0:
        return centre, size
    low = max(low, 0.0)
    high = min(high, 1.0)
    return (low + high) / 2, high - low
