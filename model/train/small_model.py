"""The small default model: its sizes, its tokenizer, and its first weights."""

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
from wordmask.model.nn.region import Region
from wordmask.model.nn.text import Tau
from wordmask.model.scenes.expressions import grammar_lines
from wordmask.model.train.loop import CHECKPOINT_FILE
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
    """Return the small model's tokenizer, with the words of the scenes."""
    return PathTokenizer(build_tokenizer(grammar_lines()))


def small_config(tokenizer: PathTokenizer) -> MoondreamSegmentationConfig:
    """Return the full architecture in small numbers: about 8 M parameters."""
    segment = tokenizer.fast.convert_tokens_to_ids("segment")
    return MoondreamSegmentationConfig(
        vision=SMALL_VISION,
        text=SMALL_TEXT | {"vocab_size": len(tokenizer.fast)},
        region=SMALL_REGION,
        refiner=SMALL_REFINER,
        tokens={"prompt_prefix": [1, segment, 2], "max_new_tokens": 96, "max_query_tokens": 64},
    )


def small_model(tokenizer: PathTokenizer, seed: int) -> MoondreamSegmentation:
    """Return a fresh model, whose neighbouring patches, numbers and bins start alike.

    Positions of patches and the values of numbers and bins start as smooth Fourier codes. All of
    them are trained from there.
    """
    torch.manual_seed(seed)
    model = MoondreamSegmentation(small_config(tokenizer))
    vision = model.model.vision
    text = model.model.text
    numbers = [str(n) for n in range(PATH_SCALE + 1)]
    number_ids = torch.tensor(tokenizer.path_ids(numbers))
    dim = text.config.dim
    with torch.no_grad():
        vision.pos_emb[0] = grid_code(vision.config.grid, vision.config.enc_dim)
        text.wte.mul_(0.5)
        text.wte[number_ids] = _number_code(dim)
        scale = dim**-0.5
        text.lm_head.weight[number_ids] = _number_code(dim) * scale
        _start_bins(model.model.region)
        for module in text.modules():
            if isinstance(module, Tau):
                module.wq.normal_(std=0.02)
                module.wv.normal_(std=0.02)
    return model


def _number_code(dim: int) -> Tensor:
    """Return codes of the numbers of a path, (PATH_SCALE + 1, dim)."""
    values = torch.linspace(0, 1, PATH_SCALE + 1)
    return fourier_code(values, dim)


def _start_bins(region: Region) -> None:
    """Let the decoders of coordinates and sizes start from codes of their bins."""
    config = region.config
    scale = config.dim**-0.5
    coord_bins = torch.linspace(0, 1, config.coord_out_dim)
    coord_code = fourier_code(coord_bins, config.dim)
    region.coord_decoder.weight.copy_(coord_code * scale)
    size_bins = torch.linspace(0, 1, config.size_out_dim // 2)
    size_code = fourier_code(size_bins.repeat(2), config.dim)
    region.size_decoder.weight.copy_(size_code * scale)


@torch.no_grad()
def warm_start(model: MoondreamSegmentation, tokenizer: PathTokenizer, init: str) -> None:
    """Take over the weights of a model of the same sizes.

    Of its tokens, those are taken that both tokenizers have by the same text.
    """
    source = resolve_model(init)
    weights = load_model(source).state_dict()
    ours, theirs = _shared_tokens(tokenizer, load_tokenizer(source))
    state = model.state_dict()
    for name, value in weights.items():
        own = state[name]
        if own.shape == value.shape:
            own.copy_(value)
        else:  # the tokens' embeddings, and the head's rows
            own[ours] = value[theirs].to(own.dtype)


def _shared_tokens(ours: PathTokenizer, theirs: PathTokenizer) -> tuple[Tensor, Tensor]:
    """Return the ids of tokens of the same text in two tokenizers, (N,) each."""
    their_indices = reversed(range(len(theirs.fast)))
    texts = {_token_text(theirs, index): index for index in their_indices}
    pairs = []
    for index in range(len(ours.fast)):
        text = _token_text(ours, index)
        if text in texts:
            pairs.append((index, texts[text]))
    our_ids, their_ids = torch.tensor(pairs).unbind(1)
    return our_ids, their_ids


def _token_text(tokenizer: PathTokenizer, index: int) -> str:
    text: str = tokenizer.fast.decode([index])
    return text.strip()


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model from the last checkpoint of a run, with that run's stage and step."""

    model: MoondreamSegmentation
    tokenizer: PathTokenizer
    stage: str
    step: int


def trained_model(run: Path) -> TrainedModel:
    """Load the model of a run of the supervised stage, or of reinforcement learning.

    Matrices learned by LoRA are merged into the weights.
    """
    saved = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    tokenizer = PathTokenizer.from_file(run / TOKENIZER_FILE)
    adapted = saved.get("adapted")
    if adapted is None:
        model = small_model(tokenizer, seed=0)
    else:
        model = load_model(resolve_model(adapted))
        add_lora(model, saved["lora_rank"])
    load_trainable_state_dict(model, saved["model"])
    merge_lora(model)
    return TrainedModel(
        model=model,
        tokenizer=tokenizer,
        stage=saved.get("stage", "sft"),
        step=saved["step"],
    )


def fourier_code(values_N: Tensor, dim: int) -> Tensor:
    """Return codes (N, dim) of values in 0..1: cosines and sines at half-octave frequencies.

    Frequencies go from half a period to 32 periods. Each is in its own random mixture of signs, so
    that codes of different tables differ.
    """
    frequency = torch.exp2(torch.linspace(-1, 5, dim // 2))
    phase = 2 * math.pi * torch.rand(dim // 2)
    angle = _angles(values_N, frequency) + phase
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def grid_code(grid: int, dim: int) -> Tensor:
    """Return sine-cosine codes (grid * grid, dim) of positions: half of it for y, half for x."""
    centre = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    octaves = torch.linspace(-1, math.log2(grid / 2), dim // 4)
    parts = []
    for axis in (y, x):
        angle = _angles(axis.flatten(), octaves.exp2())
        parts += [angle.cos(), angle.sin()]
    return torch.cat(parts, dim=1)


def _angles(values_N: Tensor, frequency_F: Tensor) -> Tensor:
    """Return the angles (N, F) of values at frequencies."""
    return 2 * math.pi * values_N[:, None] * frequency_F
