"""The encoder beyond the golden file: stitching, tilings, batches of images, early features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny import tiny_model
from wordmask.model.nn.config import VisionConfig
from wordmask.model.nn.image_crops import crop_image, normalise
from wordmask.model.nn.layers import gelu_tanh
from wordmask.model.nn.vision import VisionEncoder, patchify, stitch


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return tiny_model().model.vision


def random_crops(encoder: VisionEncoder, count: int) -> Tensor:
    size = encoder.config.crop_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_patches_are_row_major_and_flattened_as_channel_y_x():
    crops = torch.arange(2 * 3 * 6 * 4).view(2, 3, 6, 4)
    found = patchify(crops, 2)
    assert found.shape == (2, 6, 12)
    for n in range(2):
        for row in range(3):
            for col in range(2):
                patch = [
                    crops[n, c, 2 * row + y, 2 * col + x]
                    for c in range(3)
                    for y in range(2)
                    for x in range(2)
                ]
                assert found[n, 2 * row + col].tolist() == patch


@pytest.mark.parametrize("tiling", [(1, 1), (1, 4), (3, 1), (2, 2), (3, 4), (4, 3)])
def test_stitching_tiles_of_a_map_gives_the_map(tiling):
    """Tiles cut from one known map, middle tiles among them, overlap as the encoder's do."""
    rows, cols = tiling
    grid, margin, dim = 7, 2, 3
    window = grid - 2 * margin
    whole = torch.arange((rows * window + 2 * margin) * (cols * window + 2 * margin) * dim)
    whole = whole.view(rows * window + 2 * margin, cols * window + 2 * margin, dim)
    starts = [(row * window, col * window) for row in range(rows) for col in range(cols)]
    tiles = torch.stack([whole[y : y + grid, x : x + grid].reshape(-1, dim) for y, x in starts])
    assert torch.equal(stitch(tiles, tiling, margin), whole)


def test_each_patch_comes_from_the_tile_that_owns_it():
    """Where tiles disagree (they see other surroundings) the owner's value is taken."""
    tiles = torch.arange(9.0).view(9, 1, 1).expand(9, 49, 1)
    found = stitch(tiles, (3, 3), 2)[..., 0]
    owner = torch.tensor(
        [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    )  # margin 2 + window 3; window 3; window 3 + margin 2
    assert torch.equal(found, (3 * owner[:, None] + owner[None, :]).float())


@torch.no_grad()
def test_projection_pools_the_stitched_map_to_the_grid(encoder):
    grid, window = encoder.config.grid, encoder.config.grid - 2
    final = encoder(random_crops(encoder, 10)).final
    local = stitch(final[1:], (3, 3), 1)
    assert local.shape[:2] == (3 * window + 2, 3 * window + 2)
    pooled = torch.empty(grid, grid, final.shape[-1])
    for y in range(grid):
        for x in range(grid):
            top, left = y * local.shape[0] // grid, x * local.shape[1] // grid
            bottom, right = (
                -(-(y + 1) * local.shape[0] // grid),
                -(-(x + 1) * local.shape[1] // grid),
            )
            pooled[y, x] = local[top:bottom, left:right].mean(dim=(0, 1))
    expected = encoder.proj_mlp(torch.cat([final[0], pooled.flatten(0, 1)], dim=-1))
    torch.testing.assert_close(encoder.project(final, [(3, 3)])[0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_with_one_tile_leaving_it_out_equals_encoding_it(encoder):
    """`ImageCrops` leaves the only tile out; here it is encoded and pooled as any other."""
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    crops = crop_image(image, encoder.config)
    assert crops.tiling == (1, 1)
    whole = normalise(crops.crops_NHWC, torch.device("cpu"), torch.float32)
    final = encoder(torch.cat([whole, whole])).final
    pooled = F.adaptive_avg_pool2d(
        stitch(final[1:], (1, 1), 1).permute(2, 0, 1), encoder.config.grid
    )
    explicit = encoder.proj_mlp(torch.cat([final[0], pooled.flatten(1).T], dim=-1))
    torch.testing.assert_close(
        encoder.project(encoder(whole).final, [(1, 1)])[0], explicit, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_images_of_other_tilings_in_one_batch_do_not_mix(encoder):
    tilings = [(1, 1), (3, 2), (1, 1), (1, 3)]
    final = encoder(random_crops(encoder, 1 + 7 + 1 + 4)).final
    together = encoder.project(final, tilings)
    for index, part in enumerate(final.split([1, 7, 1, 4])):
        torch.testing.assert_close(
            together[index], encoder.project(part, [tilings[index]])[0], rtol=0, atol=1e-6
        )


def test_crops_that_do_not_match_the_tilings_are_an_error(encoder):
    with pytest.raises((RuntimeError, ValueError)):
        encoder.project(torch.zeros(6, 25, 32), [(1, 1), (2, 2), (1, 1)])


@torch.no_grad()
def test_early_features_are_the_stream_after_their_block_before_any_norm(encoder):
    crops = random_crops(encoder, 1)
    stream = encoder.patch_emb(patchify(crops, 14)) + encoder.pos_emb
    for block in encoder.blocks[: encoder.config.early_layer + 1]:
        stream = block(stream)
    assert torch.equal(encoder(crops).early, stream)


@torch.no_grad()
def test_attention_is_full_softmax_attention_per_head(encoder):
    attention = encoder.blocks[0].attn
    x = torch.randn(2, 25, 32, generator=torch.Generator().manual_seed(4))
    q, k, v = attention.qkv(x).split(32, dim=-1)
    heads = []
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        weight = (q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(dim=-1)
        heads.append(weight @ v[..., part])
    torch.testing.assert_close(
        attention(x), attention.proj(torch.cat(heads, dim=-1)), rtol=0, atol=1e-5
    )


def test_gelu_is_the_published_one_with_and_without_gradients():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e20, 1e20, 0.0])])
    expected = F.gelu(x.double(), approximate="tanh")
    kept = x.clone()
    torch.testing.assert_close(gelu_tanh(x).double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, kept)
    learned = x.clone().requires_grad_()
    torch.testing.assert_close(gelu_tanh(learned).double(), expected, rtol=1e-6, atol=1e-6)
    gelu_tanh(learned[:4001]).sum().backward()
    assert learned.grad.isfinite().all()


def test_default_sizes_are_the_published_ones():
    with torch.device("meta"):
        encoder = VisionEncoder(VisionConfig())
    assert encoder(torch.empty(3, 3, 378, 378, device="meta")).final.shape == (3, 729, 1152)
    assert encoder.project(torch.empty(13, 729, 1152, device="meta"), [(3, 4)]).shape == (
        1,
        729,
        2048,
    )
