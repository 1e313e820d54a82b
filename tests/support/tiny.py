"""A model of every part at the smallest sizes, with no weight at zero, and what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import FreeDecoding, PathGrammar
from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.nn.config import MoondreamSegmentationConfig, TokenConfig
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.text import causal_mask

VISION = {
    "enc_dim": 32,
    "enc_patch_size": 14,
    "enc_n_layers": 3,
    "enc_ff_dim": 40,
    "enc_n_heads": 4,
    "proj_out_dim": 32,
    "proj_inner_dim": 48,
    "crop_size": 70,
    "max_crops": 12,
    "overlap_margin": 1,
    "early_layer": 1,
}
TEXT = {
    "dim": 32,
    "ff_dim": 48,
    "n_layers": 3,
    "vocab_size": 64,
    "max_context": 128,
    "n_heads": 2,
    "n_kv_heads": 2,
    "prefix_attn": 26,
    "rotary_dim": 8,
    "moe": {"num_experts": 4, "start_layer": 1, "experts_per_token": 2, "expert_inner_dim": 16},
}
REGION = {
    "dim": 32,
    "coord_feat_dim": 8,
    "size_feat_dim": 12,
    "coord_out_dim": 32,
    "size_out_dim": 64,
}
REFINER = {"enc_dim": 32, "embed_dim": 32, "num_heads": 2}


def tiny_config() -> MoondreamSegmentationConfig:
    return MoondreamSegmentationConfig(vision=VISION, text=TEXT, region=REGION, refiner=REFINER)


def tiny_model(seed: int = 0) -> MoondreamSegmentation:
    """Every parameter is random, so a tensor loaded under a wrong name changes the output."""
    model = MoondreamSegmentation(tiny_config()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(norm + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def outputs(model: MoondreamSegmentation) -> dict[str, Tensor]:
    """What each part computes from fixed inputs, in the model's own dtype."""
    generator = torch.Generator().manual_seed(1)
    vision, text, region = model.model.vision, model.model.text, model.model.region
    size = model.config.vision.crop_size
    features = vision(torch.rand(7, 3, size, size, generator=generator).to(model.dtype) * 2 - 1)
    image = vision.project(features.final, [(2, 3)])
    x_BTD = torch.cat(
        [text.embed(torch.tensor([[0]])), image, text.embed(torch.tensor([[7, 30, 63]]))], dim=1
    )
    positions = torch.arange(x_BTD.shape[1])[None]
    hidden = text(
        x_BTD, positions, causal_mask(positions, x_BTD.shape[1], model.config.text.prefix_attn)
    )
    refined = model.head(
        model.head.fuse(features.final[:2], features.early[:2]),
        torch.ones(2, size, size).to(model.dtype),
    )
    return {
        "image": image,
        "logits": text.logits(hidden),
        "coord": region.coord_logits(hidden) + region.encode_coord(torch.tensor([0.3])).sum(),
        "size": region.size_logits(hidden) + region.encode_size(torch.tensor([0.3, 0.6])).sum(),
        "masks": refined.logits,
        "iou": refined.iou,
    }


def assert_same_outputs(found: MoondreamSegmentation, expected: MoondreamSegmentation) -> None:
    ours, theirs = outputs(found), outputs(expected)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def draw_all(
    model: MoondreamSegmentation,
    tokens: TokenConfig,
    image_IPD: Tensor,
    prompts: Sequence[Prompt],
    image_of: Sequence[int],
    token_selector: PathGrammar | FreeDecoding,
    **options: Any,
) -> list[Decoded]:
    """Decode one path per prompt, in their order; `image_of[b]` is the image of prompt b."""
    about = [
        [(b, prompts[b]) for b in range(len(prompts)) if image_of[b] == image]
        for image in range(len(image_IPD))
    ]
    found = dict(
        Engine(model.model, tokens, token_selector, **options).generate(
            zip(image_IPD, about, strict=True)
        )
    )
    return [found[b] for b in range(len(prompts))]
