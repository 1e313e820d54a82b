"""From a decoded path to a clean mask, its outline and its runs: ours against the published way.

The published engine's way is that of docs/model.md, Rasterizer, and Mask cleanup and outline. The
paths are the polygons of the instances of coco100 as the decoder would write them: integers of
0-960 in the object's box.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from tests.benchmarks.harness import Paired, Report, Target, main, paired
from wordmask.model.decoding.path_tokens import PATH_SCALE, format_number
from wordmask.model.masks import rle
from wordmask.model.masks.cleanup import clean
from wordmask.model.masks.rasterize import rasterize, rasterize_pixels
from wordmask.model.masks.trace import trace

try:
    import potrace
    import resvg_py
except ImportError as missing:
    sys.exit(
        f"{missing}: this benchmark compares with resvg and potrace; pip install --constraint"
        " constraints.txt resvg-py potracer"
    )

COCO100 = Path(__file__).parents[3] / "shared" / "data" / "coco100"
AREA_FRACTION = 0.0015
SMALL = (
    32 * 32
    # COCO's small objects. Of their few pixels many are covered by exactly half, where rounding
    # decides
)
LARGE_IOU, SMALL_IOU = (
    "IoU of masks filled, 32 x 32 px and more",
    "IoU of masks filled, under 32 x 32 px",
)
STEPS = ("rasterise", "clean", "trace", "encode")
Steps = tuple[Callable[..., Any], ...]


@dataclass(frozen=True)
class Instance:
    """A path in unit of box and its box, with the image's size in pixels.

    `bbox` is (x_centre, y_centre, w, h) in unit of image.
    """

    path: str
    bbox: tuple[float, float, float, float]
    height: int
    width: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.path, self.bbox, self.height, self.width


def instances() -> list[Instance]:
    """Return all instances of coco100 that have a path."""
    table = json.loads((COCO100 / "instances.json").read_text())
    size = {image["id"]: (image["height"], image["width"]) for image in table["images"]}
    return [
        _instance(annotation["segmentation"], *size[annotation["image_id"]])
        for annotation in table["annotations"]
    ]


def _instance(polygons: list[list[float]], height: int, width: int) -> Instance:
    outlines = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    low, high = np.concatenate(outlines).min(axis=0), np.concatenate(outlines).max(axis=0)
    centre, extent = (low + high) / 2 / (width, height), (high - low) / (width, height)
    path = " ".join(
        _subpath(np.rint((outline - low) / (high - low) * PATH_SCALE) / PATH_SCALE)
        for outline in outlines
    )
    return Instance(path, (*centre.tolist(), *extent.tolist()), height, width)


def _subpath(outline_N2: np.ndarray) -> str:
    first, *others = [f"{format_number(x)} {format_number(y)}" for x, y in outline_N2.tolist()]
    return f"M {first} L {' '.join(others)} z"


# --- the published engine's way


def resvg_rasterize(
    path: str, bbox: tuple[float, float, float, float], height: int, width: int
) -> np.ndarray:
    """Fill a path on the whole frame, antialiased at twice the size, through a PNG.

    Blocks of 2 x 2 are averaged, and thresholded at over one half.
    """
    cx, cy, w, h = bbox
    place = (
        f"translate({(cx - w / 2) * width} {(cy - h / 2) * height}) scale({w * width} {h * height})"
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width}" height="{2 * height}"'
        f' viewBox="0 0 {width} {height}"><path transform="{place}" fill="white" d="{path}"/></svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    alpha = np.asarray(Image.open(io.BytesIO(png)).getchannel("A"))
    return (alpha.reshape(height, 2, width, 2).mean(axis=(1, 3)) > 255 / 2).astype(np.uint8)


def isin_clean(mask_HW: np.ndarray) -> np.ndarray:
    """Clean the whole frame, with np.isin."""
    limit, mask = AREA_FRACTION * mask_HW.size, mask_HW
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=8)
    small = 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] < limit)
    mask = np.where(np.isin(labels, small), 1, mask).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count > 1:
        areas = stats[1:, cv2.CC_STAT_AREA]
        kept = np.flatnonzero(areas >= limit) if (areas >= limit).any() else [areas.argmax()]
        mask = np.isin(labels, 1 + np.asarray(kept)).astype(np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))


def potrace_trace(mask_HW: np.ndarray) -> str:
    """Return potrace's curves over the whole frame, in pixels."""
    parts = []
    for curve in potrace.Bitmap(mask_HW == 0).trace(turdsize=2, alphamax=1.0, opttolerance=0.2):
        parts.append(f"M {curve.start_point.x:.3f} {curve.start_point.y:.3f}")
        for segment in curve.segments:
            points = (
                (segment.c, segment.end_point)
                if segment.is_corner
                else (segment.c1, segment.c2, segment.end_point)
            )
            parts.append(
                ("L " if segment.is_corner else "C ")
                + " ".join(f"{point.x:.3f} {point.y:.3f}" for point in points)
            )
        parts.append("z")
    return " ".join(parts)


def fortran_encode(mask_HW: np.ndarray) -> rle.Rle:
    found = coco.encode(np.asfortranarray(mask_HW))
    return rle.Rle(size=found["size"], counts=found["counts"].decode("ascii"))


PUBLISHED: Steps = (resvg_rasterize, isin_clean, potrace_trace, fortran_encode)
OURS: Steps = (rasterize, partial(clean, area_fraction=AREA_FRACTION), trace, rle.encode)


# --- measuring


def chain(steps: Steps, instance: Instance) -> tuple[str, rle.Rle]:
    to_mask, to_clean, to_path, to_runs = steps
    mask = to_clean(to_mask(*instance.arguments))
    return to_path(mask), to_runs(mask)


def measure(instance: Instance) -> dict[str, Paired]:
    """Time each step, both sides on the same input, and the whole chain."""
    mask = rasterize(*instance.arguments)
    cleaned = OURS[1](mask)
    inputs = (instance.arguments, (mask,), (cleaned,), (cleaned,))
    calls = {
        step: (partial(PUBLISHED[i], *inputs[i]), partial(OURS[i], *inputs[i]))
        for i, step in enumerate(STEPS)
    }
    calls["chain"] = (partial(chain, PUBLISHED, instance), partial(chain, OURS, instance))
    return {
        step: paired({"published": theirs, "ours": ours}, 1, warm_up=0)
        for step, (theirs, ours) in calls.items()
    }


def compare(instance: Instance) -> dict[str, float]:
    """Return how near the two sides are, step by step on the same input."""
    theirs, ours = resvg_rasterize(*instance.arguments), rasterize(*instance.arguments)
    cleaned = OURS[1](theirs)
    return {
        SMALL_IOU if theirs.sum() < SMALL else LARGE_IOU: iou(theirs, ours),
        "cleaned masks equal": np.array_equal(isin_clean(theirs), cleaned),
        "our outline fills back exactly": np.array_equal(
            rasterize_pixels(trace(cleaned), *cleaned.shape), cleaned
        ),
        "RLE identical": fortran_encode(cleaned) == rle.encode(cleaned),
        "IoU of potrace's outline filled back": iou(
            rasterize_pixels(potrace_trace(cleaned), *cleaned.shape), cleaned
        ),
    }


def iou(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    union = np.count_nonzero(one_HW | other_HW)
    return float(np.count_nonzero(one_HW & other_HW) / union) if union else 1.0


def run(quick: bool) -> Report:
    """Time path to mask, outline and runs against resvg, np.isin, potrace and pycocotools."""
    chosen = instances()[:: 20 if quick else 1]
    for steps in (OURS, PUBLISHED):
        chain(steps, chosen[0])  # compiles, and loads fonts once
    times = [measure(instance) for instance in chosen]
    steps = [_row(step, [found[step] for found in times]) for step in (*STEPS, "chain")]
    vga = [
        found["chain"].median("ours")
        for found, one in zip(times, chosen, strict=True)
        if one.height * one.width == 640 * 480
    ]
    fidelity = _fidelity([compare(instance) for instance in chosen])
    mean = {row["what"]: row["mean"] for row in fidelity}
    targets = [
        Target("chain: times faster than published", steps[-1]["times faster"], at_least=40),
        Target("our chain on 640 x 480: ms", 1000 * statistics.median(vga), at_most=2),
        Target(LARGE_IOU, mean[LARGE_IOU], at_least=0.999),
        *(
            Target(f"{what}: share", share, at_least=1)
            for what, share in mean.items()
            if "IoU" not in what
        ),
    ]
    results = {
        "instances": len(chosen),
        "of them 640 x 480": len(vga),
        "medians over the instances": steps,
        "fidelity": fidelity,
    }
    return Report(results, targets)


def _row(step: str, found: list[Paired]) -> dict[str, Any]:
    published, ours = (
        1000 * statistics.median(one.median(side) for one in found)
        for side in ("published", "ours")
    )
    faster = statistics.median(one.ratio("published", "ours") for one in found)
    return {"step": step, "published ms": published, "ours ms": ours, "times faster": faster}


def _fidelity(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    columns: dict[str, list[float]] = {}
    for what, value in (item for row in rows for item in row.items()):
        columns.setdefault(what, []).append(float(value))
    return [
        {"what": what, "mean": statistics.mean(found), "least": min(found), "masks": len(found)}
        for what, found in columns.items()
    ]


if __name__ == "__main__":
    main("masks", run)
