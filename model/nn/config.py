"""Sizes and token ids of a model: one frozen section for each part of the paper.

Defaults are those of `moondream/moondream3-preview` and `moondream/SegHeadRefiner`; a smaller model
is the same classes with other numbers. Field names follow the published configuration files, so
that those load as they are. docs/model.md says what the parts compute.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from wordmask.model.hub.published_config import from_published

# A prompt is read in one pass, whose scores take memory by the square of its length.
MAX_PROMPT_TOKENS = 1024
# What is decoded before the path: coordinate, coordinate, size.
BOX_TOKENS = 3


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{field} = {value!r}: {rule}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder: crops, vision transformer, projection to the decoder's width."""

    enc_dim: int = 1152  # width of the transformer
    enc_patch_size: int = 14  # side of a patch, pixels
    enc_n_layers: int = 27  # blocks
    enc_ff_dim: int = 4304  # hidden width of a block's perceptron
    enc_n_heads: int = 16
    proj_out_dim: int = 2048  # width of an image token: the decoder's
    proj_inner_dim: int = 8192  # hidden width of the projection
    crop_size: int = 378  # side of a crop, pixels
    in_channels: int = 3  # RGB
    max_crops: int = 12  # local tiles of an image at most, beside the crop of the whole
    overlap_margin: int = 4  # patches on each side of a tile that its neighbours cover too
    early_layer: int = 8  # index of the block whose output is the early features

    def __post_init__(self) -> None:
        _require(
            self.crop_size % self.enc_patch_size == 0,
            "vision.crop_size",
            self.crop_size,
            "must be a multiple of enc_patch_size",
        )
        _require(
            self.enc_dim % self.enc_n_heads == 0,
            "vision.enc_dim",
            self.enc_dim,
            "must be a multiple of enc_n_heads",
        )
        _require(
            0 <= 2 * self.overlap_margin < self.grid,
            "vision.overlap_margin",
            self.overlap_margin,
            f"must leave a window inside the grid of {self.grid} patches",
        )
        _require(
            0 <= self.early_layer < self.enc_n_layers,
            "vision.early_layer",
            self.early_layer,
            f"must be a block index below {self.enc_n_layers}",
        )
        _require(self.max_crops >= 1, "vision.max_crops", self.max_crops, "must be at least 1")

    @property
    def grid(self) -> int:
        """Patches along one side of a crop (27)."""
        return self.crop_size // self.enc_patch_size

    @property
    def n_tokens(self) -> int:
        """Image tokens that the decoder reads, whatever the image's size (729)."""
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
    """The mixture of experts in the decoder's later blocks."""

    num_experts: int = 64
    start_layer: int = 4  # index of the first block with experts; those before are dense
    experts_per_token: int = 8
    expert_inner_dim: int = 1024  # hidden width of one expert

    def __post_init__(self) -> None:
        _require(
            1 <= self.experts_per_token <= self.num_experts,
            "text.moe.experts_per_token",
            self.experts_per_token,
            f"must be 1..{self.num_experts} (num_experts)",
        )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text decoder."""

    dim: int = 2048  # width of the residual stream
    ff_dim: int = 8192  # hidden width of a dense block's perceptron
    n_layers: int = 24
    vocab_size: int = 51200
    max_context: int = 32768  # positions at most, the image's included
    n_heads: int = 32
    n_kv_heads: int = 32
    prefix_attn: int = 730  # first positions that attend in both directions: BOS and the image
    rope_theta: float = 1_500_000.0  # base of the rotary frequencies
    rotary_dim: int = 32  # leading dims of a head that are rotated
    moe: MoeConfig = MoeConfig()

    def __post_init__(self) -> None:
        _require(
            self.dim % self.n_heads == 0, "text.dim", self.dim, "must be a multiple of n_heads"
        )
        _require(
            self.n_kv_heads == self.n_heads,
            "text.n_kv_heads",
            self.n_kv_heads,
            "grouped-query attention is not part of this architecture; set it to n_heads",
        )
        _require(
            self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
            "text.rotary_dim",
            self.rotary_dim,
            f"must be even and at most the head's {self.head_dim}",
        )

    @property
    def head_dim(self) -> int:
        """Width of one head (64)."""
        return self.dim // self.n_heads


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """The region head: coordinates and sizes as tokens."""

    dim: int = 2048  # width of the decoder
    coord_feat_dim: int = 256  # Fourier features of a coordinate, cosines and sines together
    coord_out_dim: int = 1024  # bins of a coordinate
    size_feat_dim: int = 512  # Fourier features of a size, cosines and sines together
    size_out_dim: int = 2048  # bins of width and of height together


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """The refiner head."""

    enc_dim: int = 1152  # width of the features that it reads: the encoder's
    embed_dim: int = 256  # its own width
    num_heads: int = 8
    num_layers: int = 2  # two-way blocks
    num_masks: int = 4  # candidate masks of one pass
    mlp_ratio: int = 8  # hidden width of a block's perceptron, in units of embed_dim
    iterations: int = 5  # passes over one mask

    def __post_init__(self) -> None:
        _require(
            self.embed_dim % 32 == 0,
            "refiner.embed_dim",
            self.embed_dim,
            "must be a multiple of 32 (GroupNorm)",
        )
        _require(
            self.iterations >= 0, "refiner.iterations", self.iterations, "must not be negative"
        )


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """Token ids with a meaning of their own, and the fixed parts of the `segment` prompt.

    Source: docs/model.md, Prompt and path tokens.
    """

    bos_id: int = 0
    eos_id: int = 0
    coord_id: int = 5  # stands for a coordinate, whose embedding the region head makes
    size_id: int = 6  # stands for a size (w, h), likewise
    prompt_prefix: tuple[int, ...] = (1, 17374, 2)  # between the image and the query
    prompt_suffix: tuple[int, ...] = (3,)  # after the query
    max_new_tokens: int = 768  # longest path
    max_query_tokens: int = 256  # longest expression


_SECTIONS: dict[str, Any] = {
    "vision": VisionConfig,
    "text": TextConfig,
    "region": RegionConfig,
    "refiner": RefinerConfig,
    "tokens": TokenConfig,
}


def _build_section(name: str, values: Any) -> Any:
    """Return one frozen section from a dict, or the section itself where it is one already."""
    section_class = _SECTIONS[name]
    if isinstance(values, section_class):
        return values
    fields = dict(values or {})
    for key, value in fields.items():
        if isinstance(value, list):  # JSON has no tuples
            fields[key] = tuple(value)
    if isinstance(fields.get("moe"), dict):
        fields["moe"] = _from_fields("text.moe", MoeConfig, fields["moe"])
    return _from_fields(name, section_class, fields)


def _from_fields(name: str, section_class: Any, values: dict[str, Any]) -> Any:
    """Return a section made of its fields; an unknown field is an error that names it."""
    fields = {field.name for field in dataclasses.fields(section_class)}
    if unknown := sorted(set(values) - fields):
        raise ValueError(
            f"{name}: unknown field(s) {', '.join(unknown)}; known are {', '.join(sorted(fields))}"
        )
    return section_class(**values)


class MoondreamSegmentationConfig(PreTrainedConfig):
    """Everything that decides the shape and the ids of a model; the full-size model by default.

    Each section is given as an instance or as a dict of its fields.

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
        self.vision: VisionConfig = _build_section("vision", vision)
        self.text: TextConfig = _build_section("text", text)
        self.region: RegionConfig = _build_section("region", region)
        self.refiner: RefinerConfig = _build_section("refiner", refiner)
        self.tokens: TokenConfig = _build_section("tokens", tokens)
        self._check_sections_fit()
        super().__init__(**kwargs)

    def _check_sections_fit(self) -> None:
        image_tokens = self.vision.n_tokens
        _require(
            self.text.prefix_attn == 1 + image_tokens,
            "text.prefix_attn",
            self.text.prefix_attn,
            f"must be BOS + {image_tokens} image tokens",
        )
        _require(
            self.vision.proj_out_dim == self.text.dim,
            "vision.proj_out_dim",
            self.vision.proj_out_dim,
            f"must be text.dim = {self.text.dim}",
        )
        _require(
            self.region.dim == self.text.dim,
            "region.dim",
            self.region.dim,
            f"must be text.dim = {self.text.dim}",
        )
        _require(
            self.refiner.enc_dim == self.vision.enc_dim,
            "refiner.enc_dim",
            self.refiner.enc_dim,
            f"must be vision.enc_dim = {self.vision.enc_dim}",
        )

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt after the image, in tokens.

        It is `MAX_PROMPT_TOKENS`, or what leaves room in the context for the box and the longest
        path.
        """
        decoded = BOX_TOKENS + self.tokens.max_new_tokens
        return min(MAX_PROMPT_TOKENS, self.text.max_context - self.text.prefix_attn - decoded)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a configuration file, published or our own; see the base class."""
        values, unused = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") == cls.model_type:
            return values, unused
        return from_published(values, TextConfig.vocab_size), unused

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, its sections as dicts."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in _SECTIONS}
        return super().to_dict() | sections
