"""What surrounds the refiner head: the crop around the coarse box, and the mask pasted back.

Source: docs/model.md, Refiner.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wordmask.model.masks.cleanup import Box, PixelBox, crop_xyxy


@dataclass(frozen=True, kw_only=True)
class RefinerCrop:
    """A crop of an image and of its coarse mask, both resized to the encoder's size S.

    `image` is (S, S, 3) uint8, `mask` (S, S) float32 of 0/1; `xyxy` says where they come from,
    pixels of the image.
    """

    image: np.ndarray
    mask: np.ndarray
    xyxy: PixelBox


def cut_crop(
    image_HW3: np.ndarray,
    coarse_HW: np.ndarray,
    bbox_cxcywh: Box,
    size: int,
) -> RefinerCrop | None:
    """Cut out the coarse box grown by a quarter of its sides; image bilinear, mask nearest.

    Args:
        image_HW3: uint8 RGB.
        coarse_HW: the coarse mask, uint8 of 0/1.
        bbox_cxcywh: (x_centre, y_centre, w, h) of the coarse box, in unit of image.
        size: side S of the crop, pixels.

    Returns:
        The crop, None where nothing of it is in the image.
    """
    height, width = image_HW3.shape[:2]
    cx, cy, w, h = bbox_cxcywh
    corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    xyxy = crop_xyxy(corners, height, width)
    x0, y0, x1, y1 = xyxy
    if x1 <= x0 or y1 <= y0:
        return None
    crop = (slice(y0, y1), slice(x0, x1))
    image = cv2.resize(image_HW3[crop], (size, size), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(coarse_HW[crop], (size, size), interpolation=cv2.INTER_NEAREST)
    return RefinerCrop(image=image, mask=mask.astype(np.float32), xyxy=xyxy)


def paste_mask(probs_SS: np.ndarray, xyxy: PixelBox, height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) of 0/1 that a crop's probabilities give, on an empty image.

    They are resized bilinearly to the crop `xyxy` (pixels) and thresholded at 0.5.
    """
    x0, y0, x1, y1 = xyxy
    mask = np.zeros((height, width), np.uint8)
    resized = cv2.resize(probs_SS, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    mask[y0:y1, x0:x1] = resized > 0.5
    return mask
