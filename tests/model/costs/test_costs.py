"""Costs by arithmetic against the run itself, tiny and at the full size.

Operators are counted under fake CUDA tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.support.fake_cuda import CUDA, put_on_fake_cuda
from tests.support.tiny import tiny_config
from wordmask.model.costs import flops, roofline
from wordmask.model.costs.roofline import GPUS, Gpu, estimate
from wordmask.model.costs.stages import Workload, stages
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moondream import MoondreamSegmentation, build_on_meta, parameter_count
from wordmask.model.nn.text import causal_mask

FULL = MoondreamSegmentationConfig()
STAGES = ("encode", "prefill", "prompt", "decode", "refine")


class Held(TorchDispatchMode):
    """Bytes of tensors made in it: those alive at the end, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for storage in {
            id(s): s
            for s in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor))
        }.values():
            if id(storage) not in known:
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass
class Counted:
    flops: int = 0
    most_held: int = 0


def grouped_mm_flops(x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Count a grouped product, which PyTorch's counter does not know.

    Each row of (N, wide) is multiplied by one of the matrices (E, wide, narrow).
    """
    return 2 * x_shape[0] * x_shape[1] * weight_shape[2]


@contextmanager
def counting() -> Generator[Counted]:
    counted, held = Counted(), Held()
    with (
        torch.no_grad(),
        FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_mm_flops}
        ) as counter,
        held,
    ):
        yield counted
    counted.flops, counted.most_held = counter.get_total_flops(), held.most


@pytest.fixture(params=["tiny", "full"])
def model(request: pytest.FixtureRequest) -> MoondreamSegmentation:
    model = (
        build_on_meta(tiny_config() if request.param == "tiny" else FULL)
        .to(torch.bfloat16)
        .requires_grad_(False)
        .eval()
    )
    put_on_fake_cuda(model, request.getfixturevalue("fake_cuda"))
    return model


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, device=CUDA, dtype=torch.bfloat16)


def read(model: MoondreamSegmentation, rows: int, tokens: int, seen: int) -> None:
    """A decoder's pass over the last `tokens` of `seen` positions, as the engine makes it."""
    text, prefix = model.model.text, model.config.text.prefix_attn
    positions = torch.arange(seen - tokens, seen, device=CUDA).expand(rows, -1)
    cache = text.new_cache(rows, seen)
    x_BTD = text(
        zeros(rows, tokens, model.config.text.dim),
        positions,
        causal_mask(positions, seen, prefix),
        cache,
    )
    assert x_BTD.device == CUDA


def test_flops_of_every_part_are_those_of_the_run(model: MoondreamSegmentation) -> None:
    v, t, prefix = model.config.vision, model.config.text, model.config.text.prefix_attn
    with counting() as counted:
        features = model.model.vision(zeros(7, 3, v.crop_size, v.crop_size))
    assert counted.flops == flops.encoder(v, 7).flops
    with counting() as counted:
        model.model.vision.project(features.final, [(2, 3)])
    assert counted.flops == flops.projection(v, 1).flops
    for rows, tokens, seen in ((2, prefix, prefix), (3, 5, prefix + 5), (4, 1, prefix + 9)):
        with counting() as counted:
            read(model, rows, tokens, seen)
        assert counted.flops == flops.decoder(t, rows * tokens, seen).flops
    with counting() as counted:
        model.model.text.logits(zeros(4, t.dim))
    assert counted.flops == flops.vocabulary(t, 4).flops
    with counting() as counted:
        fused = model.head.fuse(features.final[:2], features.early[:2])
    assert counted.flops == 2 * flops.fusion(model.config.refiner, v.grid).flops
    with counting() as counted:
        model.head.iterate(fused, zeros(2, v.crop_size, v.crop_size), 3)
    # The same products in another order are fewer: the formula is the paper's order.
    assert 0.75 < counted.flops / (2 * 3 * flops.refiner_pass(model.config.refiner, v).flops) <= 1


def test_the_grouped_product_is_counted(model: MoondreamSegmentation) -> None:
    t = model.config.text
    with counting() as counted:
        model.model.text.blocks[-1].mlp(zeros(3, 1, t.dim))
    experts = 3 * t.moe.experts_per_token * 3 * t.dim * t.moe.expert_inner_dim
    assert counted.flops == 2 * (experts + 3 * t.dim * t.moe.num_experts)


def test_weights_and_caches_are_those_of_the_run(model: MoondreamSegmentation) -> None:
    config = model.config
    assert flops.all_parameters(config) == parameter_count(model)
    assert flops.encoder(config.vision, 1).parameters + flops.projection(
        config.vision, 1
    ).parameters == parameter_count(model.model.vision)
    every = flops.decoder(config.text, 1, 1, config.text.moe.num_experts).parameters
    assert every == parameter_count(model.model.text.blocks)
    cache = model.model.text.new_cache(3, 11)
    assert isinstance(cache.k, FakeTensor)
    assert 3 * 11 * flops.position_bytes(config.text, "bfloat16") == sum(
        x.numel() * x.element_size() for x in (cache.k, cache.v)
    )


@pytest.mark.parametrize("model", ["full"], indirect=True)  # the tiny sizes are mostly margins
def test_activations_are_about_those_of_the_run(
    model: MoondreamSegmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention that keeps no scores, as CUDA's kernels do.

    What PyTorch falls back to here keeps them.
    """
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q)
    )
    size, prefix = FULL.vision.crop_size, FULL.text.prefix_attn
    encode, prefill, *_ = stages(FULL, Workload(crops_at_once=4, batch_rows=2))
    with counting() as encoding:
        features = model.model.vision(zeros(4, 3, size, size))
    with counting() as prefilling:
        read(model, 2, prefix, prefix)
    with counting() as refining:
        model.head.iterate(model.head.fuse(features.final, features.early), zeros(4, size, size), 2)
    assert encode.memory == pytest.approx(encoding.most_held, rel=0.1)
    assert prefill.memory == pytest.approx(prefilling.most_held, rel=0.1)
    assert refining.most_held < encode.memory, "so the encoder's is what counts"


def test_experts_hit_are_those_of_drawing_lots() -> None:
    t, generator = FULL.text, torch.Generator().manual_seed(0)
    for tokens in (1, 4, 32):
        chosen = (
            torch.rand(400, tokens, t.moe.num_experts, generator=generator)
            .topk(t.moe.experts_per_token)
            .indices
        )
        distinct = torch.tensor([len(draw.unique()) for draw in chosen]).double().mean()
        assert flops.expected_experts(t, tokens) == pytest.approx(float(distinct), rel=0.01)


def test_a_decoding_step_of_one_row_reads_the_active_parameters_and_its_cache() -> None:
    decode = stages(FULL, Workload(batch_rows=1, path_tokens=0, prompt_tokens=0))[3]
    cache = (730 + 5 / 2 + 1) * 24 * 2 * 2048 * 2
    active = (decode.bytes - cache) / 2 + flops.encoder(FULL.vision, 1).parameters
    assert 2e9 < active < 2.2e9, "the model card says 2 B active parameters"
    wide = stages(FULL, Workload(batch_rows=64, path_tokens=0, prompt_tokens=0))[3]
    assert wide.bytes < 64 * decode.bytes / 3, "rows of a batch share the weights"


def test_an_estimate_is_the_slower_of_products_and_memory_stage_by_stage() -> None:
    load = Workload(batch_rows=2)
    slow = Gpu(name="no memory to speak of", flops={"bfloat16": 1e12}, bandwidth=1e30, memory=1e15)
    per_row = sum(stage.per_row * stage.flops for stage in stages(FULL, load))
    assert estimate(FULL, load, slow, efficiency=0.25).rows_per_second == pytest.approx(
        0.25e12 / per_row
    )
    slow = Gpu(
        name="no products to speak of", flops={"bfloat16": 1e30}, bandwidth=1e12, memory=1e15
    )
    per_row = sum(stage.per_row * stage.bytes for stage in stages(FULL, load))
    assert estimate(FULL, load, slow, efficiency=0.25).rows_per_second == pytest.approx(
        0.25e12 / per_row
    )


def test_rows_at_once_are_what_fits_beside_the_weights() -> None:
    for gpu in GPUS:
        rows = estimate(FULL, Workload(batch_rows=400), gpu).rows_at_once
        one_more = (roofline.memory(FULL, Workload(batch_rows=count)) for count in (rows, rows + 1))
        assert [size + roofline.RESERVED <= gpu.memory for size in one_more] == [True, False]
    assert estimate(FULL, Workload(batch_rows=3), GPUS[0]).rows_at_once == 3
    small = estimate(FULL, Workload(dtype="float32"), GPUS[-1])
    assert (small.gpu, small.rows_at_once, small.rows_per_second) == ("L4", 0, 0.0), (
        "37 GB of weights do not fit into 24"
    )


def test_estimates_keep_the_order_of_the_hardware_and_of_sharing_images() -> None:
    found = {
        (e.gpu, e.queries_per_image): e.rows_per_second
        for e in roofline.estimates(FULL, Workload())
    }
    assert found["H100 SXM", 1] > found["A100 SXM 80 GB", 1] > found["L4", 1] > 0
    for gpu in GPUS:
        assert found[gpu.name, 8] > found[gpu.name, 1]


def test_no_refinement_costs_none() -> None:
    without = stages(FULL, Workload(refiner_iterations=0))[-1]
    assert (without.name, without.per_row) == ("refine", 0)
    assert tuple(stage.name for stage in stages(FULL, Workload())) == STAGES
