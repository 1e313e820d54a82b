"""FLOPs, bytes moved and memory of each stage of the method under a workload, by arithmetic.

The amounts are least amounts: bytes moved are the weights, once per pass, and the cache of keys
and values. What single operations hand to each other through memory is not counted, nor are
launches of kernels, decoding of images, or anything on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

from wordmask.model.costs.flops import (
    BYTES,
    decoder,
    encoder,
    fusion,
    position_bytes,
    projection,
    refiner_pass,
    vocabulary,
)
from wordmask.model.nn.config import BOX_TOKENS, MoondreamSegmentationConfig, TextConfig

# Images that are prefilled together at most: 8,192 tokens of the published size.
MAX_IMAGES_AT_ONCE = 11


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the model is to do. What is done at once shares one reading of the weights.

    Assumed by default: photographs of 640 x 480, which are 9 crops; prompts of a few words; paths
    of 136 tokens, as many as a mask's outline traced by potrace has (818 characters, six to a
    token). `refiner_iterations` None is the model's own number.
    """

    queries_per_image: int = 1
    crops_per_image: int = 9
    prompt_tokens: int = 8
    path_tokens: int = 136
    batch_rows: int = 64
    refiner_iterations: int | None = None
    dtype: str = "bfloat16"
    crops_at_once: int = 32

    @property
    def images_at_once(self) -> int:
        """Images prefilled together: as many as the batch has queries about, within the limit."""
        images_of_batch = -(-self.batch_rows // self.queries_per_image)
        return min(MAX_IMAGES_AT_ONCE, images_of_batch)

    @property
    def prompts_at_once(self) -> int:
        """Prompts read together: the engine waits for an eighth of the batch."""
        return max(1, self.batch_rows // 8)

    @property
    def steps(self) -> int:
        """Decoding steps of a row: the box, the path and the end token."""
        return BOX_TOKENS + self.path_tokens + 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The cost of one `unit` of a stage, of which a row needs `per_row`.

    `bytes` are moved for it. `memory` is held at the widest moment, besides the weights, for as
    many units as are done at once.
    """

    name: str
    unit: str
    per_row: float
    flops: float
    bytes: float
    memory: float


def stages(config: MoondreamSegmentationConfig, load: Workload) -> tuple[Stage, ...]:
    """Return the five stages in the order of the paper.

    Weights count with the share that one unit has of a reading.
    """
    return (
        _encode(config, load),
        _prefill(config, load),
        _prompt(config, load),
        _decode(config, load),
        _refine(config, load),
    )


def _encode(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    vision = config.vision
    crops = load.crops_per_image
    blocks = encoder(vision, crops)
    project = projection(vision, 1)
    encoder_share = blocks.parameters * crops / load.crops_at_once
    weights = encoder_share + project.parameters / load.images_at_once
    pixels = crops * vision.in_channels * vision.crop_size**2
    image_tokens = vision.n_tokens * vision.proj_out_dim
    return Stage(
        name="encode",
        unit=f"image of {crops} crops",
        per_row=1 / load.queries_per_image,
        flops=blocks.flops + project.flops,
        bytes=(weights + pixels + image_tokens) * BYTES[load.dtype],
        memory=_crops_memory(config, load),
    )


def _prefill(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    text = config.text
    prefix = text.prefix_attn
    images = load.images_at_once
    work = decoder(text, images * prefix, prefix)
    cache = prefix * position_bytes(text, load.dtype)
    return Stage(
        name="prefill",
        unit=f"image of {prefix} tokens",
        per_row=1 / load.queries_per_image,
        flops=work.flops / images,
        bytes=work.parameters * BYTES[load.dtype] / images + cache,
        memory=images * cache + _tokens_memory(text, images * prefix, load.dtype),
    )


def _prompt(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    """Return the cost of a prompt.

    An image's cache is copied to where its rows meet it, and once more for this pass, then read;
    the prompt's own positions are written and read.
    """
    text = config.text
    tokens = load.prompt_tokens
    prompts = load.prompts_at_once
    work = decoder(text, prompts * tokens, text.prefix_attn + tokens)
    weights = work.parameters * BYTES[load.dtype] / prompts
    positions = 5 * text.prefix_attn / load.queries_per_image + 2 * tokens
    return Stage(
        name="prompt",
        unit=f"row of {tokens} tokens",
        per_row=1,
        flops=work.flops / prompts,
        bytes=weights + positions * position_bytes(text, load.dtype),
        memory=_tokens_memory(text, prompts * tokens, load.dtype),
    )


def _decode(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    """Return the cost of a step in the middle of a path.

    The steps that decode the box are counted like the others, though their heads are smaller.
    """
    text = config.text
    rows = load.batch_rows
    own = load.prompt_tokens + (load.steps + 1) / 2
    work = decoder(text, rows, text.prefix_attn + own) + vocabulary(text, rows)
    positions = rows * (text.prefix_attn / load.queries_per_image + own + 1)
    weights = work.parameters * BYTES[load.dtype]
    return Stage(
        name="decode",
        unit=f"step of {rows} rows",
        per_row=load.steps / rows,
        flops=work.flops,
        bytes=weights + positions * position_bytes(text, load.dtype),
        memory=rows * row_cache(config, load),
    )


def _refine(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    """Return the cost of refining a mask.

    The head's activations are smaller than the encoder's, which is done before it.
    """
    iterations = load.refiner_iterations
    if iterations is None:
        iterations = config.refiner.iterations
    once = encoder(config.vision, 1) + fusion(config.refiner, config.vision.grid)
    work = once + refiner_pass(config.refiner, config.vision) * iterations
    return Stage(
        name="refine",
        unit=f"row, {iterations} iterations",
        per_row=float(iterations > 0),
        flops=work.flops,
        bytes=work.parameters * BYTES[load.dtype] / load.crops_at_once,
        memory=_crops_memory(config, load),
    )


def _crops_memory(config: MoondreamSegmentationConfig, load: Workload) -> float:
    """Return the bytes of activations of the crops encoded at once.

    They are pixels; the residual stream before and in a block's perceptron, its norm, early
    features; and the hidden layer before and after GELU.
    """
    vision = config.vision
    pixels = vision.in_channels * vision.crop_size**2
    activations = vision.n_tokens * (4 * vision.enc_dim + 2 * vision.enc_ff_dim)
    return load.crops_at_once * (pixels + activations) * BYTES[load.dtype]


def _tokens_memory(c: TextConfig, tokens: float, dtype: str) -> float:
    """Return the bytes of activations of tokens read at once.

    They are the stream before and in a block, its norm and the attention's result; then what the
    experts computed: their hidden layer, and their results sorted, put back, and weighted.
    """
    experts = c.moe.experts_per_token * (3 * c.dim + 2 * c.moe.expert_inner_dim)
    return tokens * (5 * c.dim + max(2 * c.ff_dim, experts)) * BYTES[dtype]


def row_cache(config: MoondreamSegmentationConfig, load: Workload) -> float:
    """Return the bytes of a row's keys and values, with its share of its image's.

    Positions up to the longest path are laid out from the start, also for a short one.
    """
    own = load.prompt_tokens + BOX_TOKENS + config.tokens.max_new_tokens + 1
    shared = config.text.prefix_attn / load.queries_per_image
    return (shared + own) * position_bytes(config.text, load.dtype)
