"""The outline of a mask as curves, through a library: smoother and shorter than `mask_trace`'s, and
not exact.

vtracer (MIT) by default; potrace (GPL, as potracer) where the user has chosen to install it, with
the settings of the published engine (facts, section 8). Neither is required by the package.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

import cv2
import numpy as np

from wordmask.model.masks.trace import trace

POTRACE = {"turdsize": 2, "alphamax": 1.0, "opttolerance": 0.2}
_PATH = re.compile(r'<path d="([^"]+)"[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)"')
_TOKEN = re.compile(r"[MLCZ]|-?\d+\.?\d*")
_EACH = {"M": 1, "L": 1, "C": 3, "Z": 0}  # points per command


def smooth_tracer() -> Callable[[np.ndarray], str]:
    """A function from a mask (uint8 of 0/1) to a path in pixels: absolute M, L, C and z, holes as
    further subpaths, "" if empty.

    Raises:
        ImportError: neither library is installed.
    """
    for module, tracer in (("potrace", _potrace), ("vtracer", _vtracer)):
        if importlib.util.find_spec(module) is not None:
            return lambda mask: _or_exact(tracer, mask)
    raise ImportError(
        "path_style = smooth: needs vtracer (or potracer); pip install 'wordmask[smooth]' (or"
        " 'wordmask[potrace]')"
    )


def _or_exact(tracer: Callable[[np.ndarray], str], mask_HW: np.ndarray) -> str:
    """Specks have no curve: where nothing is left of a mask, its exact outline."""
    x, y, w, h = cv2.boundingRect(mask_HW)
    if w == 0:
        return ""
    # Traced on its own box with a margin, so that outlines along the border of the image are
    # outlines like others.
    framed = np.pad(mask_HW[y : y + h, x : x + w], 2)
    return _moved(tracer(framed), x - 2, y - 2) or trace(mask_HW)


def _moved(path: str, dx: float, dy: float) -> str:
    """Each point of a path of absolute M, L, C and Z, moved and rounded to hundredths of a
    pixel.
    """
    parts: list[str] = []
    numbers = 0
    for token in _TOKEN.findall(path):
        if token in _EACH:
            parts.append("z" if token == "Z" else token)
        else:
            value = float(token) + (dy if numbers % 2 else dx)
            parts.append(f"{value:.2f}".rstrip("0").rstrip("."))
            numbers += 1
    return " ".join("0" if part == "-0" else part for part in parts)


def _vtracer(mask_HW: np.ndarray) -> str:
    import vtracer

    _, png = cv2.imencode(".png", (1 - mask_HW) * 255)
    svg = vtracer.convert_raw_image_to_svg(
        png.tobytes(),
        img_format="png",
        colormode="binary",
        mode="spline",
        filter_speckle=0,
        path_precision=3,
    )
    return " ".join(_moved(path, float(dx), float(dy)) for path, dx, dy in _PATH.findall(svg))


def _potrace(mask_HW: np.ndarray) -> str:
    import potrace

    parts: list[str] = []
    for curve in potrace.Bitmap(mask_HW == 0).trace(**POTRACE):
        parts.append(f"M {curve.start_point.x} {curve.start_point.y}")
        for segment in curve.segments:
            letter, points = (
                ("L", (segment.c, segment.end_point))
                if segment.is_corner
                else ("C", (segment.c1, segment.c2, segment.end_point))
            )
            parts += [letter, *(f"{point.x} {point.y}" for point in points)]
        parts.append("Z")
    return " ".join(parts)
