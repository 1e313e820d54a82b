"""Crops of an image, encoder features and projected tokens.

Crops may differ by 1 grey level on 0.1 % of their values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.files import Golden, assert_close
from wordmask.model.nn.config import VisionConfig
from wordmask.model.nn.image_crops import ImageCrops, crop_image, normalise
from wordmask.model.nn.vision import CropFeatures, VisionEncoder


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden.read(golden_dir / "vision.safetensors")


@pytest.fixture(scope="module")
def encoder(golden: Golden) -> VisionEncoder:
    encoder = VisionEncoder(golden.section(VisionConfig))
    encoder.load_state_dict(golden.below("model.vision."))
    return encoder


@pytest.fixture(scope="module")
def crops(golden: Golden, encoder: VisionEncoder) -> ImageCrops:
    return crop_image(golden["input.image_rgb_uint8"].numpy(), encoder.config)


@pytest.fixture(scope="module")
def features(encoder: VisionEncoder, crops: ImageCrops) -> CropFeatures:
    with torch.no_grad():
        return encoder(normalise(crops.crops_NHWC, torch.device("cpu"), torch.float32))


def test_the_tiling_of_the_image(golden: Golden, crops: ImageCrops) -> None:
    assert list(crops.tiling) == golden.config["tiling"]


@pytest.mark.parametrize(("index", "name"), [(0, "global"), (-1, "last")])
def test_crops_of_the_image(golden: Golden, crops: ImageCrops, index: int, name: str) -> None:
    found, expected = (
        crops.crops_NHWC[index].astype(int),
        golden[f"expected.crops_uint8_{name}"].numpy().astype(int),
    )
    difference = np.abs(found - expected)
    assert difference.max() <= 1
    assert (difference.max(axis=-1) > 0).mean() <= 0.001


def test_final_features_of_the_encoder(golden: Golden, features: CropFeatures) -> None:
    assert_close(features.final[0], golden["expected.features_global"])
    assert_close(features.final[-1], golden["expected.features_last_crop"])


def test_early_features_of_the_encoder(golden: Golden, features: CropFeatures) -> None:
    assert_close(features.early[0], golden["expected.early_features_global"])


def test_projected_tokens(
    golden: Golden, encoder: VisionEncoder, crops: ImageCrops, features: CropFeatures
) -> None:
    with torch.no_grad():
        assert_close(
            encoder.project(features.final, [crops.tiling])[0], golden["expected.projected"]
        )
