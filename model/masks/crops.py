"""What surrounds the refiner head: the crop around the coarse box going in, the mask pasted back
coming out (facts, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wordmask.model.masks.cleanup import crop_xyxy


@dataclass(frozen=True, kw_only=True)
class RefinerCrop:
    """`image` (size, size, 3) uint8 and `mask` (size, size) float32 of 0/1, both resized from
    `xyxy` (pixels) of the image.
    """

    image: np.ndarray
    mask: np.ndarray
    xyxy: tuple[int, int, int, int]


def cut(
    image_HW3: np.ndarray,
    coarse_HW: np.ndarray,
    bbox_cxcywh: tuple[float, float, float, float],
    size: int,
) -> RefinerCrop | None:
    """The coarse box grown by a quarter of its sides, image bilinear, mask nearest. None where
    nothing of it is in the image.
    """
    height, width = image_HW3.shape[:2]
    cx, cy, w, h = bbox_cxcywh
    x0, y0, x1, y1 = crop_xyxy((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), height, width)
    if x1 <= x0 or y1 <= y0:
        return None
    image = cv2.resize(image_HW3[y0:y1, x0:x1], (size, size), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(coarse_HW[y0:y1, x0:x1], (size, size), interpolation=cv2.INTER_NEAREST)
    return RefinerCrop(image=image, mask=mask.astype(np.float32), xyxy=(x0, y0, x1, y1))


def paste(
    probs_SS: np.ndarray, xyxy: tuple[int, int, int, int], height: int, width: int
) -> np.ndarray:
    """Mask (H, W) of 0/1: probabilities resized bilinearly to the crop, thresholded at 0.5, on an
    empty image.
    """
    x0, y0, x1, y1 = xyxy
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = (
        cv2.resize(probs_SS, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) > 0.5
    )
    return mask
