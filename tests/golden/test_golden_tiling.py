"""The tile grid for many image sizes; exact."""

from __future__ import annotations

import json
from pathlib import Path

from wordmask.model.nn.config import VisionConfig
from wordmask.model.nn.image_crops import select_tiling


def test_tilings_of_many_sizes(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "tiling.json").read_text())
    config = VisionConfig(
        crop_size=golden["crop_size"],
        enc_patch_size=golden["patch_size"],
        overlap_margin=golden["overlap_margin"],
        max_crops=golden["max_crops"],
    )
    overlap = 2 * config.margin_px
    wrong = []
    for case in golden["cases"]:
        inner = case["height"] - overlap, case["width"] - overlap
        found = select_tiling(*inner, config.window_px, config.max_crops)
        if list(found) != case["tiling"]:
            wrong.append((case, found))
    assert golden["cases"]
    assert not wrong
