"""Rows a second that a GPU's data sheet allows, from the FLOPs and bytes of the stages.

Rows a second are an estimate from arithmetic alone, at an assumed share of the peaks; nothing of
it was ever measured on a GPU by this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from wordmask.model.costs.flops import BYTES, all_parameters
from wordmask.model.costs.stages import Stage, Workload, row_cache, stages
from wordmask.model.nn.config import MoondreamSegmentationConfig

# Share of a GPU's published peaks that is taken as reached: an assumption, printed with every
# estimate.
EFFICIENCY = 0.5
# Bytes of a GPU left to CUDA's context and to what its allocator cannot use: an assumption.
RESERVED = 1e9
# Parameters. The time of a smaller model goes into launching kernels, which are not counted here.
SMALLEST = 1e9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Published peaks of a GPU: `flops` (FLOP/s by dtype), `bandwidth` (bytes/s), `memory` (bytes).

    From NVIDIA's data sheets "H100 Tensor Core GPU" (SXM column), "A100 Tensor Core GPU" (80 GB
    SXM) and "L4 Tensor Core GPU". Those of H100 and L4 give bfloat16 with sparsity (1,979 and 242
    TFLOP/s): half of it is the dense peak. float32 is without tensor cores, as PyTorch multiplies
    it by default.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float


H100 = Gpu(
    name="H100 SXM",
    flops={"bfloat16": 989.5e12, "float32": 67e12},
    bandwidth=3.35e12,
    memory=80e9,
)
A100 = Gpu(
    name="A100 SXM 80 GB",
    flops={"bfloat16": 312e12, "float32": 19.5e12},
    bandwidth=2.039e12,
    memory=80e9,
)
L4 = Gpu(
    name="L4",
    flops={"bfloat16": 121e12, "float32": 30.3e12},
    bandwidth=0.3e12,
    memory=24e9,
)
GPUS = (H100, A100, L4)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Rows a second on one GPU, by arithmetic alone.

    `rows_at_once` is the batch, cut to what fits; 0 if the model does not fit.
    """

    gpu: str
    queries_per_image: int
    rows_at_once: int
    rows_per_second: float


def estimate(
    config: MoondreamSegmentationConfig, load: Workload, gpu: Gpu, efficiency: float = EFFICIENCY
) -> Estimate:
    """Estimate the rows a second of a workload on a GPU.

    Each stage takes as long as its FLOPs or its bytes, whichever is longer, at `efficiency` of
    the peaks; stages do not overlap.
    """
    rows = rows_that_fit(config, load, gpu)
    rows_per_second = 0.0
    if rows > 0:
        fitting_load = replace(load, batch_rows=rows)
        rows_per_second = 1 / _seconds_per_row(stages(config, fitting_load), load, gpu, efficiency)
    return Estimate(
        gpu=gpu.name,
        queries_per_image=load.queries_per_image,
        rows_at_once=rows,
        rows_per_second=rows_per_second,
    )


def _seconds_per_row(
    costs: tuple[Stage, ...], load: Workload, gpu: Gpu, efficiency: float
) -> float:
    flops = gpu.flops[load.dtype] * efficiency
    bandwidth = gpu.bandwidth * efficiency
    seconds = 0.0
    for stage in costs:
        seconds += stage.per_row * max(stage.flops / flops, stage.bytes / bandwidth)
    return seconds


def memory(config: MoondreamSegmentationConfig, load: Workload) -> float:
    """Return the bytes of weights, of the batch's caches, and of activations.

    The widest activations of encoding and of prefill count as if both were at the same time.
    """
    encode, prefill, _, decode, _ = stages(config, load)
    weights = all_parameters(config) * BYTES[load.dtype]
    return weights + encode.memory + prefill.memory + decode.memory


def rows_that_fit(config: MoondreamSegmentationConfig, load: Workload, gpu: Gpu) -> int:
    """Return the largest batch, up to the workload's, that fits into the memory; 0 if none does."""
    for rows in range(load.batch_rows, 0, -1):
        if memory(config, replace(load, batch_rows=rows)) <= gpu.memory - RESERVED:
            return rows
    return 0


def estimates(
    config: MoondreamSegmentationConfig, load: Workload, queries_per_image: tuple[int, ...] = (1, 8)
) -> list[Estimate]:
    """Return an estimate for every GPU and number of queries per image."""
    return [
        estimate(config, replace(load, queries_per_image=queries), gpu)
        for gpu in GPUS
        for queries in queries_per_image
    ]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything of one model and workload, for people and for machines.

    `efficiency` is assumed, see `EFFICIENCY`.
    """

    workload: Workload
    parameters: int
    weights_bytes: int
    row_cache_bytes: float
    stages: tuple[Stage, ...]
    efficiency: float
    estimates: tuple[Estimate, ...]


def all_costs(config: MoondreamSegmentationConfig, load: Workload) -> Costs:
    """Return the costs of a model under a workload."""
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
