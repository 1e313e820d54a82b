"""How good a rollout is: the mask that its path fills against the truth (stage 2 of the paper).

The abstract says that mask quality itself is optimised, not how it is measured. Ours is what the evaluation measures: IoU, and the IoU
of the bands inside both outlines, 2 % of the diagonal wide. The first says little about an outline once it is nearly right, the second
nothing while it is far off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.engine import Decoded
from model.eval.metrics import boundary_overlap, overlap
from model.path_tokens import parse_path
from model.rasterize import rasterize
from model.tokenizer import PathTokenizer

IOU_WEIGHT, BOUNDARY_WEIGHT = 0.7, 0.3  # together 1: a perfect mask, and a true "absent", are worth 1


@dataclass(frozen=True, kw_only=True)
class Reward:
    """`value` in 0..1 is what is optimised, `iou` a part of it; `mask_HW` uint8 of 0/1 is what was drawn."""

    value: float
    iou: float
    mask_HW: np.ndarray


def filled(row: Decoded, tokenizer: PathTokenizer, height: int, width: int) -> np.ndarray:
    """The mask that a row drew: (height, width) uint8 of 0/1. Nothing for "absent" and for a malformed path, which is not salvaged."""
    path = parse_path(tokenizer.path_tokens(row.ids))
    if row.absent or not path.well_formed:
        return np.zeros((height, width), np.uint8)
    return rasterize(path.path, row.box, height, width)


def reward(row: Decoded, truth_HW: np.ndarray, tokenizer: PathTokenizer) -> Reward:
    """Reward of a row that was asked for the pixels `truth_HW`, none if what it was asked for is absent.

    Of an absent thing "absent" is worth 1, whatever else was drawn 0. Of a thing that is there "absent", a malformed path and one that
    fills nothing are worth 0.
    """
    mask_HW = filled(row, tokenizer, *truth_HW.shape)
    if not truth_HW.any():
        value = float(row.absent)
        return Reward(value=value, iou=value, mask_HW=mask_HW)
    if not mask_HW.any():
        return Reward(value=0.0, iou=0.0, mask_HW=mask_HW)
    iou = overlap(mask_HW, truth_HW).iou
    return Reward(value=IOU_WEIGHT * iou + BOUNDARY_WEIGHT * boundary_overlap(mask_HW, truth_HW).iou, iou=iou, mask_HW=mask_HW)


def mean_pairwise_iou(masks: list[np.ndarray]) -> float:
    """How alike several masks of one size are: the mean IoU of two of them, two empty ones being alike. NaN for fewer than two."""
    flat_GP = np.stack(masks).reshape(len(masks), -1).astype(np.float32)
    common_GG = flat_GP @ flat_GP.T
    area_G = common_GG.diagonal()
    union_GG = area_G[:, None] + area_G - common_GG
    first, second = np.triu_indices(len(masks), 1)
    union, common = union_GG[first, second], common_GG[first, second]
    return float(np.mean(np.where(union > 0, common / np.maximum(union, 1), 1.0))) if len(first) else float("nan")
