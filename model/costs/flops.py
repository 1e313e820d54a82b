"""FLOPs and parameters of every part of the model, by arithmetic from its configuration.

Counted are matrix products, convolutions and attention; a multiplication and an addition are two
FLOPs. The counts are exact but for the refiner's head (see `refiner_pass`). A test holds both
against the run of the full size under fake CUDA tensors. Formulas of the parts: docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from wordmask.model.nn.config import (
    MoondreamSegmentationConfig,
    RefinerConfig,
    TextConfig,
    VisionConfig,
)

BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Work:
    """FLOPs of a pass, and parameters that it reads.

    Adding two is doing both; multiplying by n is n layers alike.
    """

    flops: float = 0
    parameters: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.parameters + other.parameters)

    def __mul__(self, layers: int) -> Work:
        return Work(self.flops * layers, self.parameters * layers)


def total(*parts: Work) -> Work:
    """Return the work of doing all parts."""
    return sum(parts, Work())


def linear(rows: float, wide: int, narrow: int) -> Work:
    """Return the work of a linear layer with bias over `rows` vectors."""
    weights = wide * narrow
    return Work(2 * rows * weights, weights + narrow)


def conv(cells: int, side: int, wide: int, narrow: int) -> Work:
    """Return the work of a side x side convolution with bias that gives `cells` cells.

    For a transposed one whose stride is its side, `cells` is what it takes.
    """
    weights = side**2 * wide * narrow
    return Work(2 * cells * weights, weights + narrow)


def norm(dim: int) -> Work:
    """Return the work of a norm: its weights and biases, no FLOPs."""
    return Work(0, 2 * dim)


def attention(queries: float, keys: float, dim: int) -> Work:
    """Return the work of an attention's two products, scores and weighted values."""
    return Work(4 * queries * keys * dim)


def multihead(queries: int, keys: int, dim: int) -> Work:
    """Return the work of an attention with projections of queries, keys, values and result."""
    return total(
        linear(queries, dim, dim),
        linear(keys, dim, dim),
        linear(keys, dim, dim),
        attention(queries, keys, dim),
        linear(queries, dim, dim),
    )


def mlp(rows: float, dim: int, inner: int, out: int) -> Work:
    """Return the work of a perceptron of two layers over `rows` vectors."""
    return linear(rows, dim, inner) + linear(rows, inner, out)


def encoder(c: VisionConfig, crops: float) -> Work:
    """Return the work of the vision transformer over crops."""
    rows = crops * c.n_tokens
    dim = c.enc_dim
    patch_dim = c.in_channels * c.enc_patch_size**2
    position_embedding = Work(0, c.n_tokens * dim)
    block = total(
        norm(dim),
        linear(rows, dim, 3 * dim),
        attention(rows, c.n_tokens, dim),
        linear(rows, dim, dim),
        norm(dim),
        mlp(rows, dim, c.enc_ff_dim, dim),
    )
    return total(
        linear(rows, patch_dim, dim),
        position_embedding,
        block * c.enc_n_layers,
        norm(dim),
    )


def projection(c: VisionConfig, images: float) -> Work:
    """Return the work of projecting crops' features to the decoder's image tokens."""
    rows = images * c.n_tokens
    return mlp(rows, 2 * c.enc_dim, c.proj_inner_dim, c.proj_out_dim)


def expected_experts(c: TextConfig, tokens: float) -> float:
    """Return how many experts of a layer are chosen by at least one of the tokens.

    It is the expectation where every choice of experts is equally likely.
    """
    chosen_by_one = c.moe.experts_per_token / c.moe.num_experts
    return c.moe.num_experts * (1 - (1 - chosen_by_one) ** tokens)


def decoder(c: TextConfig, tokens: float, keys: float, experts: float | None = None) -> Work:
    """Return the work of the decoder's blocks over tokens.

    Args:
        c: sizes of the decoder.
        tokens: new positions, of all rows together.
        keys: positions that each token attends to.
        experts: experts of a layer that are read; as many as expected if None.
    """
    if experts is None:
        experts = expected_experts(c, tokens)
    dense_layers = min(c.moe.start_layer, c.n_layers)
    return total(
        norm(c.dim) * c.n_layers,
        _text_attention(c, tokens, keys) * c.n_layers,
        mlp(tokens, c.dim, c.ff_dim, c.dim) * dense_layers,
        _experts(c, tokens, experts) * (c.n_layers - dense_layers),
    )


def _text_attention(c: TextConfig, tokens: float, keys: float) -> Work:
    tau_weights = 3 * c.dim * 2 * c.n_heads
    return total(
        linear(tokens, c.dim, 3 * c.dim),
        Work(2 * tokens * tau_weights, tau_weights + c.n_heads),
        attention(tokens, keys, c.dim),
        linear(tokens, c.dim, c.dim),
    )


def _experts(c: TextConfig, tokens: float, experts: float) -> Work:
    """Return the work of one layer's router and of the `experts` that its tokens chose."""
    weights = 3 * c.dim * c.moe.expert_inner_dim
    router = linear(tokens, c.dim, c.moe.num_experts)
    return router + Work(2 * tokens * c.moe.experts_per_token * weights, experts * weights)


def vocabulary(c: TextConfig, tokens: float) -> Work:
    """Return the work of scoring the vocabulary."""
    return norm(c.dim) + linear(tokens, c.dim, c.vocab_size)


def region(config: MoondreamSegmentationConfig) -> Work:
    """Return the parameters of the region head.

    Its FLOPs are below a thousandth of a decoding step's and not counted.
    """
    c = config.region
    return total(
        Work(0, c.coord_feat_dim // 2),
        linear(0, c.coord_feat_dim, c.dim),
        linear(0, c.dim, c.coord_out_dim),
        Work(0, c.size_feat_dim),
        linear(0, c.size_feat_dim, c.dim),
        linear(0, c.dim, c.size_out_dim),
        norm(c.dim),
    )


def fusion(c: RefinerConfig, grid: int) -> Work:
    """Return the work of the refiner's image map: once a crop, whatever the iterations."""
    cells = grid**2
    dim = c.embed_dim
    return total(
        conv(cells, 1, c.enc_dim, dim),
        linear(cells, c.enc_dim, dim),
        norm(dim),
        conv(cells, 1, 2 * dim, dim),
        norm(dim),
        conv(cells, 3, dim, dim),
        norm(dim),
    )


def refiner_pass(c: RefinerConfig, vision: VisionConfig) -> Work:
    """Return the work of one iteration of the refiner's head over one crop.

    Attention is counted in the order of the paper; the head multiplies in another order, which
    takes fewer FLOPs.
    """
    cells = vision.grid**2
    dim = c.embed_dim
    tokens = c.num_masks + 1
    learned_tokens_and_positions = Work(0, dim * (cells + 2 * tokens))
    return total(
        mask_encoder(dim, vision.crop_size),
        learned_tokens_and_positions,
        _two_way_block(c, tokens, cells) * c.num_layers,
        multihead(tokens, cells, dim),
        norm(dim),
        _perceptron(dim, c.num_masks),
        upsampling(c, vision.grid),
        mask_predictions(c, 64 * cells),
    )


def _two_way_block(c: RefinerConfig, tokens: int, cells: int) -> Work:
    dim = c.embed_dim
    return total(
        multihead(tokens, tokens, dim),
        multihead(tokens, cells, dim),
        mlp(tokens, dim, c.mlp_ratio * dim, dim),
        multihead(cells, tokens, dim),
        norm(dim) * 4,
    )


def _perceptron(dim: int, out: int) -> Work:
    """Return the work of a perceptron of three layers over one vector."""
    return linear(1, dim, dim) * 2 + linear(1, dim, out)


def mask_encoder(dim: int, size: int) -> Work:
    """Return the work of encoding a mask of size x size: four convolutions of stride 2."""
    work = Work()
    widths = (1, dim // 16, dim // 8, dim // 4, dim)
    for narrow, wide in pairwise(widths):
        size = -(-size // 2)
        work += conv(size**2, 3, narrow, wide)
        work += norm(wide)
    return work


def upsampling(c: RefinerConfig, grid: int) -> Work:
    """Return the work of the three upsampling steps, each to twice the side and half the width."""
    work = Work()
    for step in range(3):
        wide = c.embed_dim >> step
        narrow = wide // 2
        cells = (grid << step) ** 2
        work += conv(cells, 2, wide, narrow)
        work += conv(4 * cells, 3, narrow, narrow)
        work += norm(narrow) * 2
    return work


def mask_predictions(c: RefinerConfig, pixels: int) -> Work:
    """Return the work of the mask tokens over the upsampled pixels.

    It is an attention, a perceptron for each mask, and the product of its result with the pixels.
    """
    fine = c.embed_dim // 8
    return total(
        linear(c.num_masks, c.embed_dim, fine),
        norm(fine),
        multihead(c.num_masks, pixels, fine),
        _perceptron(fine, fine) * c.num_masks,
        Work(2 * c.num_masks * fine * pixels),
    )


def all_parameters(config: MoondreamSegmentationConfig) -> int:
    """Return the number of parameters of the vision-language model and the refiner."""
    vision = config.vision
    text = config.text
    work = total(
        encoder(vision, 0),
        projection(vision, 0),
        Work(0, text.vocab_size * text.dim),
        decoder(text, 0, 0, text.moe.num_experts),
        vocabulary(text, 0),
        region(config),
        fusion(config.refiner, vision.grid),
        refiner_pass(config.refiner, vision),
    )
    return int(work.parameters)


def position_bytes(c: TextConfig, dtype: str) -> int:
    """Return the bytes of one position's keys and values in every layer."""
    return 2 * c.n_layers * c.dim * BYTES[dtype]
