"""From an image to the encoder's crops: one of the whole image, and overlapping local tiles.

Formulas in docs/model.md, Image crops.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wordmask.model.nn.config import VisionConfig

Tiling = tuple[int, int]  # rows and columns of local tiles


@dataclass(frozen=True, kw_only=True)
class ImageCrops:
    """Crops of one image, uint8 RGB (N, crop, crop, 3), and its tiling (rows, cols).

    Crop 0 is the whole image; crops 1.. are the tiles, row by row. With a 1 x 1 tiling the only
    tile would be the same resize of the same image as crop 0, so it is not repeated: N = 1 there,
    else 1 + rows * cols.
    """

    crops_NHWC: np.ndarray
    tiling: Tiling


def select_tiling(height: int, width: int, window: int, max_crops: int) -> Tiling:
    """Return the (rows, cols) of local tiles for an image.

    Args:
        height: the image's height less both margins, pixels; 0 or less fits.
        width: likewise.
        window: side of the window that a tile owns, pixels.
        max_crops: tiles at most. An image of an extreme shape may get more: each axis has at least
            one tile.
    """
    if height <= window or width <= window:
        return 1, 1
    min_rows = ceil(height / window)
    min_cols = ceil(width / window)
    if min_rows * min_cols > max_crops:
        ratio = sqrt(max_crops / (min_rows * min_cols))
        rows = floor(min_rows * ratio)
        cols = floor(min_cols * ratio)
        return max(1, rows), max(1, cols)
    rows = max(floor(sqrt(max_crops * height / width)), min_rows)
    cols = max(floor(sqrt(max_crops * width / height)), min_cols)
    if rows * cols > max_crops:
        if cols > rows:
            cols = floor(max_crops / rows)
        else:
            rows = floor(max_crops / cols)
    return max(1, rows), max(1, cols)


def crop_image(image_HW3: np.ndarray, config: VisionConfig) -> ImageCrops:
    """Cut an RGB uint8 image (H, W, 3) of any size into the encoder's crops."""
    height, width = image_HW3.shape[:2]
    window = config.window_px
    overlap = 2 * config.margin_px
    rows, cols = select_tiling(height - overlap, width - overlap, window, config.max_crops)
    crops = [_resize(image_HW3, config.crop_size, config.crop_size)]
    if (rows, cols) != (1, 1):
        tiled_HW3 = _resize(image_HW3, rows * window + overlap, cols * window + overlap)
        crops += _cut_tiles(tiled_HW3, config)
    return ImageCrops(crops_NHWC=np.stack(crops), tiling=(rows, cols))


def _cut_tiles(tiled_HW3: np.ndarray, config: VisionConfig) -> Iterator[np.ndarray]:
    """Yield the tiles of a resized image, row by row: one for each window that fits into it."""
    height, width = tiled_HW3.shape[:2]
    size = config.crop_size
    for y in range(0, height - size + 1, config.window_px):
        for x in range(0, width - size + 1, config.window_px):
            yield tiled_HW3[y : y + size, x : x + size]


def _resize(image_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(image_HW3).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def normalise(crops_NHWC: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Turn uint8 crops (N, H, W, 3) into a tensor (N, 3, H, W) with values in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(crops_NHWC)).to(device, non_blocking=True)
    x_NCHW = x.permute(0, 3, 1, 2).float()
    return x_NCHW.div_(255).sub_(0.5).div_(0.5).to(dtype)
