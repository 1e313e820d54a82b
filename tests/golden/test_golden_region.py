"""Coordinates and sizes to embeddings, and the residual stream to bins and values. Bins exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.files import Golden, assert_close
from wordmask.model.nn.config import RegionConfig
from wordmask.model.nn.region import Region, coord_value, size_value


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden.read(golden_dir / "region.safetensors")


@pytest.fixture(scope="module")
def region(golden: Golden) -> Region:
    region = Region(golden.section(RegionConfig))
    region.load_state_dict(golden.below("model.region."))
    return region


@torch.no_grad()
def test_coordinates_and_sizes_are_encoded(golden: Golden, region: Region) -> None:
    assert_close(region.encode_coord(golden["input.coords"]), golden["expected.coord_embedding"])
    assert_close(region.encode_size(golden["input.sizes"]), golden["expected.size_embedding"])


@torch.no_grad()
def test_coordinates_are_decoded(golden: Golden, region: Region) -> None:
    bins = region.coord_logits(golden["input.hidden"]).argmax(-1)
    assert torch.equal(bins, golden["expected.coord_bins"])
    assert_close(coord_value(bins, region.config.coord_out_dim), golden["expected.coord_values"])


@torch.no_grad()
def test_sizes_are_decoded(golden: Golden, region: Region) -> None:
    bins = region.size_logits(golden["input.hidden"]).argmax(-1)
    assert torch.equal(bins, golden["expected.size_bins"])
    assert_close(size_value(bins, region.config.size_out_dim // 2), golden["expected.size_values"])
