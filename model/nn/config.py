"""Sizes and ids of a Moondream Segmentation model: one frozen section per part of the paper.

Defaults are those of `moondream/moondream3-preview` and `moondream/SegHeadRefiner`; a smaller model
is the same classes with other numbers. Field names follow the published configuration files, so
that those load as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig


def _require(section: str, field: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{section}.{field} = {value!r}: {rule}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder: crops, vision transformer, projection to the decoder's width."""

    enc_dim: int = 1152
    enc_patch_size: int = 14
    enc_n_layers: int = 27
    enc_ff_dim: int = 4304
    enc_n_heads: int = 16
    proj_out_dim: int = 2048
    proj_inner_dim: int = 8192
    crop_size: int = 378
    in_channels: int = 3
    max_crops: int = 12
    overlap_margin: int = 4
    early_layer: int = 8

    def __post_init__(self) -> None:
        _require(
            "vision",
            "crop_size",
            self.crop_size,
            self.crop_size % self.enc_patch_size == 0,
            "must be a multiple of enc_patch_size",
        )
        _require(
            "vision",
            "enc_dim",
            self.enc_dim,
            self.enc_dim % self.enc_n_heads == 0,
            "must be a multiple of enc_n_heads",
        )
        _require(
            "vision",
            "overlap_margin",
            self.overlap_margin,
            0 <= 2 * self.overlap_margin < self.grid,
            f"must leave a window inside the grid of {self.grid} patches",
        )
        _require(
            "vision",
            "early_layer",
            self.early_layer,
            0 <= self.early_layer < self.enc_n_layers,
            f"must be a block index below {self.enc_n_layers}",
        )
        _require("vision", "max_crops", self.max_crops, self.max_crops >= 1, "must be at least 1")

    @property
    def grid(self) -> int:
        """Patches along one side of a crop (27)."""
        return self.crop_size // self.enc_patch_size

    @property
    def n_tokens(self) -> int:
        """Image tokens the decoder sees, whatever the image's size (729)."""
        return self.grid**2

    @property
    def margin_px(self) -> int:
        """Overlap margin on each side of a crop, pixels (56)."""
        return self.overlap_margin * self.enc_patch_size

    @property
    def window_px(self) -> int:
        """Side of the window that a local tile owns, pixels (266)."""
        return self.crop_size - 2 * self.margin_px


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture of experts in the decoder's blocks from `start_layer` on."""

    num_experts: int = 64
    start_layer: int = 4
    experts_per_token: int = 8
    expert_inner_dim: int = 1024

    def __post_init__(self) -> None:
        _require(
            "text.moe",
            "experts_per_token",
            self.experts_per_token,
            1 <= self.experts_per_token <= self.num_experts,
            f"must be 1..{self.num_experts} (num_experts)",
        )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder."""

    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    vocab_size: int = 51200
    max_context: int = 32768
    n_heads: int = 32
    n_kv_heads: int = 32
    prefix_attn: int = 730
    rope_theta: float = 1_500_000.0
    rotary_dim: int = 32
    moe: MoeConfig = MoeConfig()

    def __post_init__(self) -> None:
        _require(
            "text", "dim", self.dim, self.dim % self.n_heads == 0, "must be a multiple of n_heads"
        )
        _require(
            "text",
            "n_kv_heads",
            self.n_kv_heads,
            self.n_kv_heads == self.n_heads,
            "grouped-query attention is not part of this architecture; set it to n_heads",
        )
        _require(
            "text",
            "rotary_dim",
            self.rotary_dim,
            self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
            f"must be even and at most the head's {self.head_dim}",
        )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """Coordinates and sizes as tokens."""

    dim: int = 2048
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024
    size_feat_dim: int = 512
    size_out_dim: int = 2048


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """The refiner head. `embed_dim` is its width; the feature width `enc_dim` is the encoder's."""

    enc_dim: int = 1152
    embed_dim: int = 256
    num_heads: int = 8
    num_layers: int = 2
    num_masks: int = 4
    mlp_ratio: int = 8
    iterations: int = 5

    def __post_init__(self) -> None:
        _require(
            "refiner",
            "embed_dim",
            self.embed_dim,
            self.embed_dim % 32 == 0,
            "must be a multiple of 32 (GroupNorm)",
        )
        _require(
            "refiner", "iterations", self.iterations, self.iterations >= 0, "must not be negative"
        )


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """Token ids with a meaning of their own and the fixed parts of the `segment` prompt (facts,
    section 5).
    """

    bos_id: int = 0
    eos_id: int = 0
    coord_id: int = 5
    size_id: int = 6
    prompt_prefix: tuple[int, ...] = (1, 17374, 2)
    prompt_suffix: tuple[int, ...] = (3,)
    max_new_tokens: int = 768
    max_query_tokens: int = 256


MOST_PROMPT_TOKENS = (
    1024  # a prompt is read in one pass, whose scores take memory by the square of its length
)
BOX_TOKENS = 3  # coordinate, coordinate, size: what is drawn before the path

_SECTIONS = {
    "vision": VisionConfig,
    "text": TextConfig,
    "region": RegionConfig,
    "refiner": RefinerConfig,
    "tokens": TokenConfig,
}
_TOKEN_IDS = ("bos_id", "eos_id", "coord_id", "size_id")


def _section(name: str, values: Any) -> Any:
    """One frozen section from a dict; unknown fields are an error that names them."""
    cls = _SECTIONS[name]
    if isinstance(values, cls):
        return values
    values = dict(values or {})
    if isinstance(values.get("moe"), dict):
        values["moe"] = _known("text.moe", MoeConfig, values["moe"])
    return _known(
        name,
        cls,
        {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()},
    )


def _known(name: str, cls: Any, values: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{name}: unknown field(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return cls(**values)


def _from_published(values: dict[str, Any], model_type: str) -> dict[str, Any]:
    """A published config.json in our terms; our own is returned as it is.

    Published ones hold the sections below `config`, and only where they differ from the full size.
    What else they hold (auto_map, skills, prompts of other tasks) does not concern segmentation.
    """
    if values.get("model_type") == model_type:
        return values
    nested = values.get("config") or values
    sections = {
        name: dict(nested[name])
        for name in ("vision", "text", "region", "refiner")
        if nested.get(name)
    }
    for section in sections.values():
        section.pop(
            "group_size", None
        )  # quantisation of other checkpoints; shapes and dtypes tell here
    ids = {
        key: value for key, value in (nested.get("tokenizer") or {}).items() if key in _TOKEN_IDS
    }
    return (
        sections
        | ({"tokens": ids} if ids else {})
        | {key: values[key] for key in ("dtype", "torch_dtype") if key in values}
    )


class MoondreamSegmentationConfig(PreTrainedConfig):
    """Everything that decides the shape and the ids of a model; the full-size model by default.

    Raises:
        ValueError: a field is unknown, out of range, or does not fit another; the message names
        both.
    """

    model_type = "moondream_segmentation"

    def __init__(
        self,
        vision: Any = None,
        text: Any = None,
        region: Any = None,
        refiner: Any = None,
        tokens: Any = None,
        **kwargs: Any,
    ) -> None:
        self.vision: VisionConfig = _section("vision", vision)
        self.text: TextConfig = _section("text", text)
        self.region: RegionConfig = _section("region", region)
        self.refiner: RefinerConfig = _section("refiner", refiner)
        self.tokens: TokenConfig = _section("tokens", tokens)
        _require(
            "text",
            "prefix_attn",
            self.text.prefix_attn,
            self.text.prefix_attn == 1 + self.vision.n_tokens,
            f"must be BOS + {self.vision.n_tokens} image tokens",
        )
        _require(
            "vision",
            "proj_out_dim",
            self.vision.proj_out_dim,
            self.vision.proj_out_dim == self.text.dim,
            f"must be text.dim = {self.text.dim}",
        )
        _require(
            "region",
            "dim",
            self.region.dim,
            self.region.dim == self.text.dim,
            f"must be text.dim = {self.text.dim}",
        )
        _require(
            "refiner",
            "enc_dim",
            self.refiner.enc_dim,
            self.refiner.enc_dim == self.vision.enc_dim,
            f"must be vision.enc_dim = {self.vision.enc_dim}",
        )
        super().__init__(**kwargs)

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt after the image: `MOST_PROMPT_TOKENS`, or what leaves room in the context
        for the box and the longest path.
        """
        return min(
            MOST_PROMPT_TOKENS,
            self.text.max_context - self.text.prefix_attn - BOX_TOKENS - self.tokens.max_new_tokens,
        )

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, unused = super().get_config_dict(*args, **kwargs)
        return _from_published(values, cls.model_type), unused

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return values | {name: dataclasses.asdict(getattr(self, name)) for name in _SECTIONS}
