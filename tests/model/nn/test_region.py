"""Coordinates and sizes: values of bins, their inverses, and the Fourier codes."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.tiny import tiny_model
from wordmask.model.nn.config import RegionConfig
from wordmask.model.nn.region import Region, coord_bin, coord_value, size_bin, size_value

BINS = torch.arange(1024)


@pytest.fixture(scope="module")
def region() -> Region:
    return tiny_model().model.region


def test_coordinates_run_from_zero_to_one_in_equal_steps():
    values = coord_value(BINS, 1024)
    assert values[0] == 0
    assert values[-1] == 1
    assert values[341].item() == pytest.approx(341 / 1023)


def test_sizes_run_over_ten_octaves():
    values = size_value(BINS, 1024)
    assert values[0].item() == 2**-10
    assert values[-1].item() == 1
    assert values[682].item() == pytest.approx(2 ** (682 / 1023 * 10 - 10), rel=1e-6)
    ratios = values[1:] / values[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 2 ** (10 / 1023)))


def test_every_bin_comes_back_from_its_value():
    for n_bins in (32, 1024):
        bins = torch.arange(n_bins)
        assert [
            round(coord_bin(v, n_bins)) for v in coord_value(bins, n_bins).tolist()
        ] == bins.tolist()
        assert [
            round(size_bin(v, n_bins)) for v in size_value(bins, n_bins).tolist()
        ] == bins.tolist()


@pytest.mark.parametrize(("value", "expected"), [(-0.5, 0), (0.0, 0), (1.0, 1023), (1.7, 1023)])
def test_coordinates_outside_are_clamped(value, expected):
    assert coord_bin(value, 1024) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0), (2**-11, 0), (2**-10, 0), (1.0, 1023), (3.0, 1023)]
)
def test_sizes_outside_are_clamped(value, expected):
    assert size_bin(value, 1024) == expected


@torch.no_grad()
def test_fourier_codes_written_out(region):
    x, y = 0.3, 0.8
    angles = [2 * math.pi * x * weight for weight in region.coord_features[0].tolist()]
    code = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    expected = region.coord_encoder.weight @ code + region.coord_encoder.bias
    torch.testing.assert_close(region.encode_coord(torch.tensor([x])), expected, rtol=0, atol=1e-5)

    pairs = zip(region.size_features[0].tolist(), region.size_features[1].tolist(), strict=True)
    angles = [2 * math.pi * (x * for_width + y * for_height) for for_width, for_height in pairs]
    code = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    expected = region.size_encoder.weight @ code + region.size_encoder.bias
    torch.testing.assert_close(
        region.encode_size(torch.tensor([x, y])), expected, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_decoders_read_the_stream_through_their_own_norm(region):
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    normed = (hidden - hidden.mean(-1, keepdim=True)) / (
        hidden.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    normed = normed * region.ln.weight + region.ln.bias
    expected = normed @ region.coord_decoder.weight.T + region.coord_decoder.bias
    torch.testing.assert_close(region.coord_logits(hidden), expected, rtol=0, atol=1e-5)
    flat = normed @ region.size_decoder.weight.T + region.size_decoder.bias
    width, height = flat[:, :32], flat[:, 32:]
    torch.testing.assert_close(
        region.size_logits(hidden), torch.stack([width, height], dim=1), rtol=0, atol=1e-5
    )


def test_default_sizes_are_the_published_ones():
    region = Region(RegionConfig())
    hidden = torch.zeros(2, 2048)
    assert region.coord_logits(hidden).shape == (2, 1024)
    assert region.size_logits(hidden).shape == (2, 2, 1024)
    assert (
        region.encode_coord(torch.zeros(2, 1)).shape
        == region.encode_size(torch.zeros(2, 2)).shape
        == (2, 2048)
    )
