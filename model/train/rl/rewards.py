"""Rewards of rollouts: the mask that a path fills against the truth (stage 2 of the paper).

The abstract says that mask quality itself is optimised, not how it is measured. Here it is what the
evaluation measures: IoU, and the IoU of the bands inside both outlines, 2 % of the diagonal wide.
The first says little about an outline once it is nearly right, the second nothing while it is far
off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.eval.metrics import boundary_overlap, overlap
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.scenes.canvas import unit_box

# Together 1: a perfect mask, and a true "absent", are worth 1.
IOU_WEIGHT, BOUNDARY_WEIGHT = 0.7, 0.3

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Reward:
    """How good one rollout is."""

    value: float  # 0..1, what is optimised
    iou: float  # of the filled mask, a part of the value
    box_iou: float  # of the decoded box with the true mask's, 0 where either is none; logged only
    mask_HW: np.ndarray  # uint8 of 0/1, what the rollout fills


def fill_rollout(rollout: Decoded, tokenizer: PathTokenizer, height: int, width: int) -> np.ndarray:
    """Return the mask that a rollout fills: (height, width) uint8 of 0/1.

    It is empty for "absent", and for a malformed path, which is not salvaged.
    """
    path = parse_path(tokenizer.path_tokens(rollout.ids))
    if rollout.absent or not path.well_formed:
        return np.zeros((height, width), np.uint8)
    return rasterize(path.path, rollout.clipped_box, height, width)


def reward(rollout: Decoded, truth_HW: np.ndarray, tokenizer: PathTokenizer) -> Reward:
    """Return the reward of a rollout, whose true mask is empty if its prompt names nothing.

    Of an absent thing "absent" is worth 1, and all else 0. Of a thing that is there "absent", a
    malformed path and one that fills nothing are worth 0.
    """
    mask_HW = fill_rollout(rollout, tokenizer, *truth_HW.shape)
    if not truth_HW.any():
        value = float(rollout.absent)
        return Reward(value=value, iou=value, box_iou=0.0, mask_HW=mask_HW)
    decoded_box_iou = 0.0
    if not rollout.absent:
        decoded_box_iou = box_iou(rollout.clipped_box, box_around(truth_HW))
    if not mask_HW.any():
        return Reward(value=0.0, iou=0.0, box_iou=decoded_box_iou, mask_HW=mask_HW)
    iou = overlap(mask_HW, truth_HW).iou
    boundary_iou = boundary_overlap(mask_HW, truth_HW).iou
    value = IOU_WEIGHT * iou + BOUNDARY_WEIGHT * boundary_iou
    return Reward(value=value, iou=iou, box_iou=decoded_box_iou, mask_HW=mask_HW)


def box_around(mask_HW: np.ndarray) -> Box:
    """Return the box (cx, cy, w, h) around a mask, in unit of image."""
    x, y, w, h = cv2.boundingRect(mask_HW)
    height, width = mask_HW.shape
    return unit_box((x, y, x + w, y + h), height, width)


def box_iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes (cx, cy, w, h)."""
    width = _common_side(a, b, axis=0)
    height = _common_side(a, b, axis=1)
    common = width * height
    union = _area(a) + _area(b) - common
    return common / union


def _area(box: Box) -> float:
    _, _, width, height = box
    return width * height


def _common_side(a: Box, b: Box, axis: int) -> float:
    """Return how long the intersection of two boxes is along an axis."""
    a_start, a_stop = _side(a, axis)
    b_start, b_stop = _side(b, axis)
    start = max(a_start, b_start)
    stop = min(a_stop, b_stop)
    return max(0.0, stop - start)


def _side(box: Box, axis: int) -> tuple[float, float]:
    """Return where a box (cx, cy, w, h) starts and stops along an axis."""
    centre = box[axis]
    half = box[axis + 2] / 2
    return centre - half, centre + half


def mean_pairwise_iou(masks: list[np.ndarray]) -> float:
    """Return the mean IoU of each two of some masks of one size: how alike they are.

    Two empty masks are alike. NaN for fewer than two masks.
    """
    if len(masks) < 2:
        return math.nan
    flat = [mask.ravel() for mask in masks]
    flat_GP = np.stack(flat).astype(np.float32)
    common_GG = flat_GP @ flat_GP.T
    area_G = common_GG.diagonal()
    union_GG = area_G[:, None] + area_G - common_GG
    pairs = np.triu_indices(len(masks), 1)
    common = common_GG[pairs]
    union = union_GG[pairs]
    ious = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    return float(np.mean(ious))
