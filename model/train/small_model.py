"""The small default model: its sizes, its tokenizer, and a start that already knows what is near
what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wordmask.model.decoding.path_tokens import PATH_SCALE
from wordmask.model.decoding.tokenizer import PathTokenizer, build_tokenizer
from wordmask.model.hub.registry import TOKENIZER_FILE, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.scenes.expressions import grammar_lines
from wordmask.model.train.lora import add_lora, load_trainable_state_dict, merge_lora

SMALL_VISION = {
    "enc_dim": 192,
    "enc_patch_size": 12,
    "enc_n_layers": 6,
    "enc_ff_dim": 512,
    "enc_n_heads": 4,
    "proj_out_dim": 192,
    "proj_inner_dim": 384,
    "crop_size": 120,
    "max_crops": 4,
    "overlap_margin": 1,
    "early_layer": 1,
}
SMALL_TEXT = {
    "dim": 192,
    "ff_dim": 512,
    "n_layers": 7,
    "n_heads": 4,
    "n_kv_heads": 4,
    "max_context": 512,
    "prefix_attn": 101,
    "rope_theta": 10_000.0,
    "rotary_dim": 24,
    "moe": {"num_experts": 8, "start_layer": 2, "experts_per_token": 2, "expert_inner_dim": 128},
}
SMALL_REGION = {"dim": 192, "coord_feat_dim": 64, "size_feat_dim": 128}
SMALL_REFINER = {"enc_dim": 192, "embed_dim": 64}


def small_tokenizer() -> PathTokenizer:
    """The small model's tokenizer, with the words of the scenes."""
    return PathTokenizer(build_tokenizer(grammar_lines()))


def small_config(tokenizer: PathTokenizer) -> MoondreamSegmentationConfig:
    """Full architecture, small numbers: about 8 M parameters."""
    segment = tokenizer.fast.convert_tokens_to_ids("segment")
    return MoondreamSegmentationConfig(
        vision=SMALL_VISION,
        text=SMALL_TEXT | {"vocab_size": len(tokenizer.fast)},
        region=SMALL_REGION,
        refiner=SMALL_REFINER,
        tokens={"prompt_prefix": [1, segment, 2], "max_new_tokens": 96, "max_query_tokens": 64},
    )


def small_model(tokenizer: PathTokenizer, seed: int) -> MoondreamSegmentation:
    """A fresh model. Positions of patches and the values of numbers and bins start as smooth
    Fourier codes, so that neighbours start alike; everything is trained from there."""
    torch.manual_seed(seed)
    model = MoondreamSegmentation(small_config(tokenizer))
    vision, text, region = model.model.vision, model.model.text, model.model.region
    numbers = torch.tensor(tokenizer.path_ids(str(n) for n in range(PATH_SCALE + 1)))
    values = torch.linspace(0, 1, PATH_SCALE + 1)
    with torch.no_grad():
        vision.pos_emb[0] = grid_code(vision.config.grid, vision.config.enc_dim)
        text.wte.mul_(0.5)
        text.wte[numbers] = fourier_code(values, text.config.dim)
        text.lm_head.weight[numbers] = fourier_code(values, text.config.dim) * text.config.dim**-0.5
        bins = torch.linspace(0, 1, region.config.coord_out_dim)
        region.coord_decoder.weight.copy_(
            fourier_code(bins, text.config.dim) * text.config.dim**-0.5
        )
        bins = torch.linspace(0, 1, region.config.size_out_dim // 2).repeat(2)
        region.size_decoder.weight.copy_(
            fourier_code(bins, text.config.dim) * text.config.dim**-0.5
        )
        for block in text.blocks:
            block.attn.tau.wq.normal_(std=0.02)
            block.attn.tau.wv.normal_(std=0.02)
    return model


def warm_start(model: MoondreamSegmentation, tokenizer: PathTokenizer, folder: str) -> None:
    """Take over the weights of a model folder of the same sizes, and of its tokens those that both
    tokenizers know by the same text.
    """
    source = resolve_model(folder)
    weights, known = load_model(source).state_dict(), load_tokenizer(source).fast
    texts = {known.decode([i]).strip(): i for i in reversed(range(len(known)))}
    pairs = [
        (i, texts[text])
        for i in range(len(tokenizer.fast))
        if (text := tokenizer.fast.decode([i]).strip()) in texts
    ]
    ours, theirs = (torch.tensor(places) for places in zip(*pairs, strict=True))
    own = model.state_dict()
    for name, value in weights.items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
        else:  # the tokens' embeddings, and the head's rows
            own[name][ours] = value[theirs].to(own[name].dtype)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model from the last checkpoint of a run that trains the decoder, its tokenizer, and that
    run's stage and step.
    """

    model: MoondreamSegmentation
    tokenizer: PathTokenizer
    stage: str
    step: int


def trained_model(run: Path) -> Trained:
    """From the folder of the supervised stage, or of reinforcement learning. What LoRA learned is
    merged into the weights.
    """
    saved = torch.load(run / "last.pt", weights_only=True)
    tokenizer = PathTokenizer.from_file(run / TOKENIZER_FILE)
    if adapted := saved.get("adapted"):
        model = load_model(resolve_model(adapted))
        add_lora(model, saved["lora_rank"])
    else:
        model = small_model(tokenizer, seed=0)
    load_trainable_state_dict(model, saved["model"])
    merge_lora(model)
    return Trained(
        model=model, tokenizer=tokenizer, stage=saved.get("stage", "sft"), step=saved["step"]
    )


def fourier_code(values_N: Tensor, dim: int) -> Tensor:
    """(N, dim) cosines and sines of values in 0..1 at half-octave frequencies from half a period to
    32 periods, each frequency in its own random mixture of signs so that codes of different tables
    differ."""
    frequency = torch.exp2(torch.linspace(-1, 5, dim // 2))
    angle = 2 * math.pi * values_N[:, None] * frequency + 2 * math.pi * torch.rand(dim // 2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def grid_code(grid: int, dim: int) -> Tensor:
    """(grid * grid, dim) two-dimensional sine-cosine position code: half the dims for y, half for
    x.
    """
    place = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(place, place, indexing="ij")
    frequency = torch.exp2(torch.linspace(-1, math.log2(grid / 2), dim // 4))
    angles = [2 * math.pi * axis.flatten()[:, None] * frequency for axis in (y, x)]
    return torch.cat([f(angle) for angle in angles for f in (torch.cos, torch.sin)], dim=1)
