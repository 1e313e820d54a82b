"""What the model costs by arithmetic: FLOPs, bytes moved and memory of each stage, and rows a
second that a GPU's data sheet allows.

Exact, but for the refiner's head (see `refiner_pass`): FLOPs of matrix products, convolutions and
attention (a multiplication and an addition are two), and parameters. A test counts both on the very
run of the full size under fake CUDA tensors.

Least amounts: bytes moved are the weights, once per pass, and the cache of keys and values; what
single operations hand to each other through memory is not counted, nor are launches of kernels,
decoding of images, or anything on the host. Rows a second are therefore an estimate from arithmetic
alone, at an assumed share of the peaks; nothing of it was ever measured on a GPU by this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from wordmask.model.nn.config import (
    BOX_TOKENS,
    MoondreamSegmentationConfig,
    RefinerConfig,
    TextConfig,
    VisionConfig,
)

BYTES = {"bfloat16": 2, "float32": 4}
# share of a GPU's published peaks that is taken as reached: an assumption, and printed with every
# estimate
EFFICIENCY = 0.5
RESERVED = (
    1e9  # bytes of a GPU left to CUDA's context and to what its allocator cannot use: assumed
)
# parameters; the time of a smaller model goes into launching kernels, of which this arithmetic
# knows nothing
SMALLEST = 1e9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Published peaks: FLOP/s without sparsity by number format, bytes/s and bytes of memory.

    From NVIDIA's data sheets "H100 Tensor Core GPU" (SXM column), "A100 Tensor Core GPU" (80 GB
    SXM) and "L4 Tensor Core GPU". Those of H100 and L4 give bfloat16 with sparsity (1,979 and 242
    TFLOP/s): half of it is the dense peak. float32 is without tensor cores, as PyTorch multiplies
    it unless told otherwise.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float


GPUS = (
    Gpu(
        name="H100 SXM",
        flops={"bfloat16": 989.5e12, "float32": 67e12},
        bandwidth=3.35e12,
        memory=80e9,
    ),
    Gpu(
        name="A100 SXM 80 GB",
        flops={"bfloat16": 312e12, "float32": 19.5e12},
        bandwidth=2.039e12,
        memory=80e9,
    ),
    Gpu(name="L4", flops={"bfloat16": 121e12, "float32": 30.3e12}, bandwidth=0.3e12, memory=24e9),
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of the model. What is done at once shares one reading of the weights.

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
        """Images prefilled together: as many as the batch asks about, and no more than are 8,192
        tokens of the published size.
        """
        return min(11, -(-self.batch_rows // self.queries_per_image))

    @property
    def prompts_at_once(self) -> int:
        """Prompts read together: an eighth of the batch is waited for."""
        return max(1, self.batch_rows // 8)

    @property
    def steps(self) -> int:
        """Decoding steps of a row: the box, the path and the end token."""
        return BOX_TOKENS + self.path_tokens + 1


@dataclass(frozen=True)
class Work:
    """FLOPs of a pass, and parameters that it reads. Adding is doing both; times n is n layers
    alike.
    """

    flops: float = 0
    parameters: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.parameters + other.parameters)

    def __mul__(self, layers: int) -> Work:
        return Work(self.flops * layers, self.parameters * layers)


def linear(rows: float, wide: int, narrow: int) -> Work:
    return Work(2 * rows * wide * narrow, wide * narrow + narrow)


def conv(cells: int, side: int, wide: int, narrow: int) -> Work:
    """A side x side convolution giving `cells` cells; for a transposed one whose stride is its
    side, taking `cells` cells.
    """
    return Work(2 * cells * side**2 * wide * narrow, side**2 * wide * narrow + narrow)


def norm(dim: int) -> Work:
    return Work(0, 2 * dim)


def attention(queries: float, keys: float, dim: int) -> Work:
    return Work(4 * queries * keys * dim)


def multihead(queries: int, keys: int, dim: int) -> Work:
    """Projections of queries, keys, values and result around an attention."""
    return (
        linear(queries, dim, dim) * 2 + linear(keys, dim, dim) * 2 + attention(queries, keys, dim)
    )


def encoder(c: VisionConfig, crops: float) -> Work:
    """The vision transformer over crops (facts, section 2)."""
    rows, dim = crops * c.n_tokens, c.enc_dim
    attend = linear(rows, dim, 3 * dim) + attention(rows, c.n_tokens, dim) + linear(rows, dim, dim)
    block = (
        norm(dim) * 2 + attend + linear(rows, dim, c.enc_ff_dim) + linear(rows, c.enc_ff_dim, dim)
    )
    embed = linear(rows, c.in_channels * c.enc_patch_size**2, dim) + Work(0, c.n_tokens * dim)
    return embed + block * c.enc_n_layers + norm(dim)


def projection(c: VisionConfig, images: float) -> Work:
    """Crops' features to the decoder's image tokens."""
    rows = images * c.n_tokens
    return linear(rows, 2 * c.enc_dim, c.proj_inner_dim) + linear(
        rows, c.proj_inner_dim, c.proj_out_dim
    )


def expected_experts(c: TextConfig, tokens: float) -> float:
    """How many experts of a layer are hit by at least one of the tokens, if every choice of experts
    is equally likely.
    """
    return c.moe.num_experts * (1 - (1 - c.moe.experts_per_token / c.moe.num_experts) ** tokens)


def decoder(c: TextConfig, tokens: float, keys: float, experts: float | None = None) -> Work:
    """The decoder's blocks over tokens that attend to `keys` positions each (facts, section 3).
    `experts`: how many of a layer are read; as expected if None."""
    dense_layers = min(c.moe.start_layer, c.n_layers)
    tau = Work(2 * tokens * 3 * c.dim * 2 * c.n_heads, 3 * c.dim * 2 * c.n_heads + c.n_heads)
    attend = (
        linear(tokens, c.dim, 3 * c.dim)
        + tau
        + attention(tokens, keys, c.dim)
        + linear(tokens, c.dim, c.dim)
    )
    dense = linear(tokens, c.dim, c.ff_dim) + linear(tokens, c.ff_dim, c.dim)
    expert = 3 * c.dim * c.moe.expert_inner_dim
    hit = expected_experts(c, tokens) if experts is None else experts
    mixture = linear(tokens, c.dim, c.moe.num_experts) + Work(
        2 * tokens * c.moe.experts_per_token * expert, hit * expert
    )
    return (
        (norm(c.dim) + attend) * c.n_layers
        + dense * dense_layers
        + mixture * (c.n_layers - dense_layers)
    )


def vocabulary(c: TextConfig, tokens: float) -> Work:
    """Scores over the vocabulary."""
    return norm(c.dim) + linear(tokens, c.dim, c.vocab_size)


def region(config: MoondreamSegmentationConfig) -> Work:
    """Parameters of the region module; its FLOPs are below a thousandth of a step's and not
    counted.
    """
    c = config.region
    coord = (
        linear(0, c.coord_feat_dim, c.dim)
        + linear(0, c.dim, c.coord_out_dim)
        + Work(0, c.coord_feat_dim // 2)
    )
    size = (
        linear(0, c.size_feat_dim, c.dim)
        + linear(0, c.dim, c.size_out_dim)
        + Work(0, c.size_feat_dim)
    )
    return coord + size + norm(c.dim)


def fusion(c: RefinerConfig, grid: int) -> Work:
    """The refiner's image map: once for each crop, whatever the number of iterations (facts,
    section 7).
    """
    cells, dim = grid**2, c.embed_dim
    project = conv(cells, 1, c.enc_dim, dim) + linear(cells, c.enc_dim, dim) + norm(dim)
    return project + conv(cells, 1, 2 * dim, dim) + conv(cells, 3, dim, dim) + norm(dim) * 2


def refiner_pass(c: RefinerConfig, vision: VisionConfig) -> Work:
    """One iteration of the refiner's head over one crop, its attention multiplied out as the paper
    writes it: the most that it takes.
    """
    cells, dim, tokens, fine = vision.grid**2, c.embed_dim, c.num_masks + 1, c.embed_dim // 8
    mlp = linear(tokens, dim, c.mlp_ratio * dim) + linear(tokens, c.mlp_ratio * dim, dim)
    block = (
        multihead(tokens, tokens, dim)
        + multihead(tokens, cells, dim)
        + mlp
        + multihead(cells, tokens, dim)
        + norm(dim) * 4
    )
    learned = Work(0, dim * (cells + 2 * tokens))
    final = (
        multihead(tokens, cells, dim)
        + norm(dim)
        + linear(1, dim, dim) * 2
        + linear(1, dim, c.num_masks)
    )
    pixels = masks(c.num_masks, dim, fine, 64 * cells)
    return (
        mask_encoder(dim, vision.crop_size)
        + learned
        + block * c.num_layers
        + final
        + upsampling(c, vision.grid)
        + pixels
    )


def mask_encoder(dim: int, size: int) -> Work:
    work, widths = Work(), (1, dim // 16, dim // 8, dim // 4, dim)
    for wide, narrow in pairwise(widths):
        size = -(-size // 2)
        work += conv(size**2, 3, wide, narrow) + norm(narrow)
    return work


def upsampling(c: RefinerConfig, grid: int) -> Work:
    work = Work()
    for step in range(3):
        wide, narrow, cells = c.embed_dim >> step, c.embed_dim >> (step + 1), (grid << step) ** 2
        work += conv(cells, 2, wide, narrow) + conv(4 * cells, 3, narrow, narrow) + norm(narrow) * 2
    return work


def masks(count: int, dim: int, fine: int, pixels: int) -> Work:
    """Mask tokens over the upsampled pixels: attention, a perceptron for each mask, and its product
    with the pixels.
    """
    attend = linear(count, dim, fine) + norm(fine) + multihead(count, pixels, fine)
    return attend + linear(1, fine, fine) * 3 * count + Work(2 * count * fine * pixels)


def all_parameters(config: MoondreamSegmentationConfig) -> int:
    """Parameters of vision-language model and refiner."""
    v, t = config.vision, config.text
    words = Work(0, t.vocab_size * t.dim) + vocabulary(t, 0)
    drawing = (
        encoder(v, 0)
        + projection(v, 0)
        + decoder(t, 0, 0, t.moe.num_experts)
        + words
        + region(config)
    )
    return int(
        (drawing + fusion(config.refiner, v.grid) + refiner_pass(config.refiner, v)).parameters
    )


def slot_bytes(c: TextConfig, dtype: str) -> int:
    """Keys and values of one position in every layer."""
    return 2 * c.n_layers * c.dim * BYTES[dtype]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """FLOPs and bytes moved for one `unit`, of which a row needs `per_row`. `memory`: bytes held at
    the widest moment, besides the weights, for as many units as are done at once."""

    name: str
    unit: str
    per_row: float
    flops: float
    bytes: float
    memory: float


def stages(config: MoondreamSegmentationConfig, load: Workload) -> tuple[Stage, ...]:
    """The five stages in the order of the paper. Weights count with the share that one unit has of
    a reading.
    """
    return (
        _encode(config, load),
        _prefill(config, load),
        _prompt(config, load),
        _decode(config, load),
        _refine(config, load),
    )


def _crops_memory(config: MoondreamSegmentationConfig, load: Workload) -> float:
    """Activations of the crops encoded at once: pixels; before and in a block's perceptron the
    residual stream, its norm, early features, and the hidden layer before and after GELU."""
    v = config.vision
    numbers = v.in_channels * v.crop_size**2 + v.n_tokens * (4 * v.enc_dim + 2 * v.enc_ff_dim)
    return load.crops_at_once * numbers * BYTES[load.dtype]


def _tokens_memory(c: TextConfig, tokens: float, dtype: str) -> float:
    """Activations of tokens read at once: before and in a block the stream, its norm and the
    attention's result, then what the experts computed: their hidden layer, and their results
    sorted, put back, and weighted."""
    experts = c.moe.experts_per_token * (3 * c.dim + 2 * c.moe.expert_inner_dim)
    return tokens * (5 * c.dim + max(2 * c.ff_dim, experts)) * BYTES[dtype]


def _encode(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    v, number, crops = config.vision, BYTES[load.dtype], load.crops_per_image
    blocks, project = encoder(v, crops), projection(v, 1)
    weights = (
        blocks.parameters * crops / load.crops_at_once + project.parameters / load.images_at_once
    )
    moved = weights + crops * v.in_channels * v.crop_size**2 + v.n_tokens * v.proj_out_dim
    memory = _crops_memory(config, load)
    per_row, flops = 1 / load.queries_per_image, blocks.flops + project.flops
    return Stage(
        name="encode",
        unit=f"image of {crops} crops",
        per_row=per_row,
        flops=flops,
        bytes=moved * number,
        memory=memory,
    )


def _prefill(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    t, prefix = config.text, config.text.prefix_attn
    work = decoder(t, load.images_at_once * prefix, prefix)
    cache = prefix * slot_bytes(t, load.dtype)
    moved = work.parameters * BYTES[load.dtype] / load.images_at_once + cache
    memory = load.images_at_once * cache + _tokens_memory(
        t, load.images_at_once * prefix, load.dtype
    )
    per_row, flops = 1 / load.queries_per_image, work.flops / load.images_at_once
    return Stage(
        name="prefill",
        unit=f"image of {prefix} tokens",
        per_row=per_row,
        flops=flops,
        bytes=moved,
        memory=memory,
    )


def _prompt(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    """An image's cache is copied to where its rows meet it, and once more for this pass, then read;
    the prompt's own slots are written and read."""
    t, tokens, slot = config.text, load.prompt_tokens, slot_bytes(config.text, load.dtype)
    work = decoder(t, load.prompts_at_once * tokens, t.prefix_attn + tokens)
    moved = (
        work.parameters * BYTES[load.dtype] / load.prompts_at_once
        + (5 * t.prefix_attn / load.queries_per_image + 2 * tokens) * slot
    )
    memory = _tokens_memory(t, load.prompts_at_once * tokens, load.dtype)
    flops = work.flops / load.prompts_at_once
    return Stage(
        name="prompt",
        unit=f"row of {tokens} tokens",
        per_row=1,
        flops=flops,
        bytes=moved,
        memory=memory,
    )


def _decode(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    """A step in the middle of a path. The steps that draw the box are counted like the others,
    though their heads are smaller.
    """
    t, rows, slot = config.text, load.batch_rows, slot_bytes(config.text, load.dtype)
    own = load.prompt_tokens + (load.steps + 1) / 2
    work = decoder(t, rows, t.prefix_attn + own) + vocabulary(t, rows)
    moved = (
        work.parameters * BYTES[load.dtype]
        + rows * (t.prefix_attn / load.queries_per_image + own + 1) * slot
    )
    memory = rows * row_cache(config, load)
    return Stage(
        name="decode",
        unit=f"step of {rows} rows",
        per_row=load.steps / rows,
        flops=work.flops,
        bytes=moved,
        memory=memory,
    )


def _refine(config: MoondreamSegmentationConfig, load: Workload) -> Stage:
    """The head's activations are smaller than the encoder's, which is done before it."""
    iterations = (
        config.refiner.iterations if load.refiner_iterations is None else load.refiner_iterations
    )
    v = config.vision
    once = encoder(v, 1) + fusion(config.refiner, v.grid)
    work = once + refiner_pass(config.refiner, v) * iterations
    moved = work.parameters * BYTES[load.dtype] / load.crops_at_once
    per_row, memory = float(iterations > 0), _crops_memory(config, load)
    return Stage(
        name="refine",
        unit=f"row, {iterations} iterations",
        per_row=per_row,
        flops=work.flops,
        bytes=moved,
        memory=memory,
    )


def row_cache(config: MoondreamSegmentationConfig, load: Workload) -> float:
    """Bytes of a row's keys and values, with its share of its image's. Slots up to the longest path
    are laid out from the start, also for a short one."""
    own = load.prompt_tokens + BOX_TOKENS + config.tokens.max_new_tokens + 1
    return (config.text.prefix_attn / load.queries_per_image + own) * slot_bytes(
        config.text, load.dtype
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Rows a second on one GPU by arithmetic alone. `rows_at_once`: the batch, cut to what fits; 0
    if the model does not fit.
    """

    gpu: str
    queries_per_image: int
    rows_at_once: int
    rows_per_second: float


def estimate(
    config: MoondreamSegmentationConfig, load: Workload, gpu: Gpu, efficiency: float = EFFICIENCY
) -> Estimate:
    """Each stage takes as long as its FLOPs or its bytes, whichever is longer, at `efficiency` of
    the peaks; stages do not overlap.
    """
    rows = rows_that_fit(config, load, gpu)
    if rows == 0:
        return Estimate(
            gpu=gpu.name,
            queries_per_image=load.queries_per_image,
            rows_at_once=0,
            rows_per_second=0.0,
        )
    flops, bandwidth = gpu.flops[load.dtype] * efficiency, gpu.bandwidth * efficiency
    costs = stages(config, replace(load, batch_rows=rows))
    seconds = sum(
        stage.per_row * max(stage.flops / flops, stage.bytes / bandwidth) for stage in costs
    )
    return Estimate(
        gpu=gpu.name,
        queries_per_image=load.queries_per_image,
        rows_at_once=rows,
        rows_per_second=1 / seconds,
    )


def memory(config: MoondreamSegmentationConfig, load: Workload) -> float:
    """Bytes of weights, of the batch's caches and the widest activations of encoding and prefill,
    as if these were at the same time.
    """
    encode, prefill, _, decode, _ = stages(config, load)
    return (
        all_parameters(config) * BYTES[load.dtype] + encode.memory + prefill.memory + decode.memory
    )


def rows_that_fit(config: MoondreamSegmentationConfig, load: Workload, gpu: Gpu) -> int:
    """The largest batch, up to the workload's, that fits into the memory; 0 if none does."""
    batches = range(load.batch_rows, 0, -1)
    return next(
        (
            rows
            for rows in batches
            if memory(config, replace(load, batch_rows=rows)) <= gpu.memory - RESERVED
        ),
        0,
    )


def estimates(
    config: MoondreamSegmentationConfig, load: Workload, queries_per_image: tuple[int, ...] = (1, 8)
) -> list[Estimate]:
    """For every GPU and number of queries per image."""
    return [
        estimate(config, replace(load, queries_per_image=queries), gpu)
        for gpu in GPUS
        for queries in queries_per_image
    ]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything of one model and workload, for people and for machines. `efficiency` is assumed,
    see `EFFICIENCY`.
    """

    workload: Workload
    parameters: int
    weights_bytes: int
    row_cache_bytes: float
    stages: tuple[Stage, ...]
    efficiency: float
    estimates: tuple[Estimate, ...]


def all_costs(config: MoondreamSegmentationConfig, load: Workload) -> Costs:
    parameters = all_parameters(config)
    return Costs(
        workload=load,
        parameters=parameters,
        weights_bytes=parameters * BYTES[load.dtype],
        row_cache_bytes=row_cache(config, load),
        stages=stages(config, load),
        efficiency=EFFICIENCY,
        estimates=tuple(estimates(config, load)),
    )
