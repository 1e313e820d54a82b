"""The outline of a mask as curves, through a library: smoother and shorter than `trace`'s.

It is not exact. The library is vtracer (MIT) by default, or potrace (GPL, as potracer) where the
user has chosen to install it, with the settings of the published engine (docs/model.md, Mask
cleanup and outline). The package requires neither.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from wordmask.model.masks.trace import trace

Tracer = Callable[[np.ndarray], str]

POTRACE = {"turdsize": 2, "alphamax": 1.0, "opttolerance": 0.2}
FRAME = 2  # empty pixels around a mask while it is traced
_PATH = re.compile(r'<path d="([^"]+)"[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)"')
_TOKEN = re.compile(r"[MLCZ]|-?\d+\.?\d*")
_LETTERS = frozenset("MLCZ")


def smooth_tracer() -> Tracer:
    """Return a function that traces masks (H, W), uint8 of 0/1, by the library that is installed.

    It gives a path in pixels: absolute M, L, C and z, holes as further subpaths, "" if empty.

    Raises:
        ImportError: neither library is installed.
    """
    for module, tracer in (("potrace", _potrace), ("vtracer", _vtracer)):
        if importlib.util.find_spec(module) is not None:
            return lambda mask: _trace_framed(tracer, mask)
    raise ImportError(
        "path_style = smooth: needs vtracer (or potracer); pip install 'wordmask[smooth]' (or"
        " 'wordmask[potrace]')"
    )


def _trace_framed(tracer: Tracer, mask_HW: np.ndarray) -> str:
    """Trace a mask on its own box with a frame, so that it has no outline along a border.

    Specks have no curve: where nothing is left of a mask, its exact outline is returned.
    """
    x, y, w, h = cv2.boundingRect(mask_HW)
    if w == 0:
        return ""
    framed = np.pad(mask_HW[y : y + h, x : x + w], FRAME)
    return _translate(tracer(framed), x - FRAME, y - FRAME) or trace(mask_HW)


def _translate(path: str, dx: float, dy: float) -> str:
    """Move each point of a path of absolute M, L, C and Z.

    Numbers are rounded to hundredths of a pixel.
    """
    parts: list[str] = []
    offsets = (dx, dy)
    numbers = 0
    for token in _TOKEN.findall(path):
        if token == "Z":
            parts.append("z")
        elif token in _LETTERS:
            parts.append(token)
        else:
            parts.append(_hundredths(float(token) + offsets[numbers % 2]))
            numbers += 1
    return " ".join(parts)


def _hundredths(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    if text == "-0":
        return "0"
    return text


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
    parts: list[str] = []
    for path, dx, dy in _PATH.findall(svg):
        parts.append(_translate(path, float(dx), float(dy)))
    return " ".join(parts)


def _potrace(mask_HW: np.ndarray) -> str:
    import potrace

    parts: list[str] = []
    for curve in potrace.Bitmap(mask_HW == 0).trace(**POTRACE):
        parts.append(_command("M", curve.start_point))
        for segment in curve.segments:
            if segment.is_corner:
                parts.append(_command("L", segment.c, segment.end_point))
            else:
                parts.append(_command("C", segment.c1, segment.c2, segment.end_point))
        parts.append("Z")
    return " ".join(parts)


def _command(letter: str, *points: Any) -> str:
    return " ".join([letter, *(f"{point.x} {point.y}" for point in points)])
