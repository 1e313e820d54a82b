"""How good a rollout is: the mask that its path fills against the truth (stage 2 of the paper).

The abstract says that mask quality itself is optimised, not how it is measured. Ours is what the
evaluation measures: IoU, and the IoU of the bands inside both outlines, 2 % of the diagonal wide.
The first says little about an outline once it is nearly right, the second nothing while it is far
off.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.eval.metrics import boundary_overlap, overlap
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.scenes.canvas import unit_box

IOU_WEIGHT, BOUNDARY_WEIGHT = (
    0.7,
    0.3,
)  # together 1: a perfect mask, and a true "absent", are worth 1


@dataclass(frozen=True, kw_only=True)
class Reward:
    """`value` in 0..1 is what is optimised, `iou` a part of it; `mask_HW` uint8 of 0/1 is what was
    drawn. `box_iou` is the IoU of the drawn box with the true mask's, 0 where either is none; it is
    logged only."""

    value: float
    iou: float
    box_iou: float
    mask_HW: np.ndarray


def filled(row: Decoded, tokenizer: PathTokenizer, height: int, width: int) -> np.ndarray:
    """The mask that a row drew: (height, width) uint8 of 0/1. Nothing for "absent" and for a
    malformed path, which is not salvaged.
    """
    path = parse_path(tokenizer.path_tokens(row.ids))
    if row.absent or not path.well_formed:
        return np.zeros((height, width), np.uint8)
    return rasterize(path.path, row.box, height, width)


def reward(row: Decoded, truth_HW: np.ndarray, tokenizer: PathTokenizer) -> Reward:
    """Reward of a row that was asked for the pixels `truth_HW`, none if what it was asked for is
    absent.

    Of an absent thing "absent" is worth 1, whatever else was drawn 0. Of a thing that is there
    "absent", a malformed path and one that fills nothing are worth 0.
    """
    mask_HW = filled(row, tokenizer, *truth_HW.shape)
    if not truth_HW.any():
        value = float(row.absent)
        return Reward(value=value, iou=value, box_iou=0.0, mask_HW=mask_HW)
    around = 0.0 if row.absent else box_iou(row.box, box_around(truth_HW))
    if not mask_HW.any():
        return Reward(value=0.0, iou=0.0, box_iou=around, mask_HW=mask_HW)
    iou = overlap(mask_HW, truth_HW).iou
    value = IOU_WEIGHT * iou + BOUNDARY_WEIGHT * boundary_overlap(mask_HW, truth_HW).iou
    return Reward(value=value, iou=iou, box_iou=around, mask_HW=mask_HW)


Box = tuple[float, float, float, float]


def box_around(mask_HW: np.ndarray) -> Box:
    """The box (cx, cy, w, h) around a mask, in unit of image."""
    x, y, w, h = cv2.boundingRect(mask_HW)
    return unit_box((x, y, x + w, y + h), *mask_HW.shape)


def box_iou(a: Box, b: Box) -> float:
    """IoU of two boxes (cx, cy, w, h)."""
    sides = [
        max(
            0.0,
            min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
            - max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2),
        )
        for axis in (0, 1)
    ]
    common = sides[0] * sides[1]
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def mean_pairwise_iou(masks: list[np.ndarray]) -> float:
    """How alike several masks of one size are: the mean IoU of two of them, two empty ones being
    alike. NaN for fewer than two.
    """
    flat_GP = np.stack(masks).reshape(len(masks), -1).astype(np.float32)
    common_GG = flat_GP @ flat_GP.T
    area_G = common_GG.diagonal()
    union_GG = area_G[:, None] + area_G - common_GG
    first, second = np.triu_indices(len(masks), 1)
    union, common = union_GG[first, second], common_GG[first, second]
    return (
        float(np.mean(np.where(union > 0, common / np.maximum(union, 1), 1.0)))
        if len(first)
        else float("nan")
    )
