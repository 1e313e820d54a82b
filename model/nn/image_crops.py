"""From an image to the encoder's crops: one of the whole, and overlapping local tiles (facts,
section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wordmask.model.nn.config import VisionConfig


@dataclass(frozen=True, kw_only=True)
class ImageCrops:
    """Crops of one image, uint8 RGB (N, crop, crop, 3).

    Crop 0 is the whole image; crops 1.. are the tiles, row by row. With a 1 x 1 tiling the only
    tile would be the same resize of the same image as crop 0, so it is not repeated: N = 1 there,
    else 1 + rows * cols.
    """

    crops_NHWC: np.ndarray
    tiling: tuple[int, int]


def select_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """(rows, cols) of local tiles. `height` and `width` are the image's less both margins, pixels;
    0 or less fits.
    """
    if height <= window or width <= window:
        return 1, 1
    min_rows, min_cols = ceil(height / window), ceil(width / window)
    if min_rows * min_cols > max_crops:
        ratio = sqrt(max_crops / (min_rows * min_cols))
        return max(1, floor(min_rows * ratio)), max(1, floor(min_cols * ratio))
    rows = max(floor(sqrt(max_crops * height / width)), min_rows)
    cols = max(floor(sqrt(max_crops * width / height)), min_cols)
    if rows * cols > max_crops:
        if cols > rows:
            cols = floor(max_crops / rows)
        else:
            rows = floor(max_crops / cols)
    return max(1, rows), max(1, cols)


def _resize(image_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HW3).resize((width, height), Image.Resampling.LANCZOS))


def crop_image(image_HW3: np.ndarray, config: VisionConfig) -> ImageCrops:
    """Cut an RGB uint8 image (H, W, 3) of any size into the encoder's crops."""
    height, width = image_HW3.shape[:2]
    overlap = 2 * config.margin_px
    rows, cols = select_tiling(
        height - overlap, width - overlap, config.window_px, config.max_crops
    )
    crops = [_resize(image_HW3, config.crop_size, config.crop_size)]
    if (rows, cols) != (1, 1):
        tiled = _resize(
            image_HW3, rows * config.window_px + overlap, cols * config.window_px + overlap
        )
        starts = (
            (row * config.window_px, col * config.window_px)
            for row in range(rows)
            for col in range(cols)
        )
        crops += [tiled[y : y + config.crop_size, x : x + config.crop_size] for y, x in starts]
    return ImageCrops(crops_NHWC=np.stack(crops), tiling=(rows, cols))


def normalise(crops_NHWC: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """uint8 (N, H, W, 3) to (N, 3, H, W) in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(crops_NHWC)).to(device, non_blocking=True)
    return x.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5).to(dtype)
