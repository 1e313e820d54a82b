"""The share of the processor's matrix speed that each stage reaches.

That is model FLOP/s over the FLOP/s of plain products of the same shapes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.harness import Report, Target, main, paired
from tests.benchmarks.models import Work, medium_model, photographs
from tests.support.batches import started_batch
from wordmask.model.costs import flops
from wordmask.model.costs.stages import Workload
from wordmask.model.costs.stages import stages as stages_of
from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.prefill import prefill_prefix
from wordmask.model.segmenter import Segmenter

THREADS = 2
Shape = tuple[int, int, int]  # rows, inner, columns of a product
TARGETS = {"vision": 0.70, "prefill": 0.70, "whole job": 0.45}


@dataclass(frozen=True)
class Stage:
    """One stage of the model: FLOPs of a call, the call, and the shapes of its products.

    Each shape has the number of times that it occurs.
    """

    name: str
    flops: float
    call: Callable[[], Any]
    shapes: Sequence[tuple[int, Shape]]


def run(quick: bool) -> Report:
    """Share of plain matrix products' speed that each stage reaches, on the medium model."""
    torch.set_grad_enabled(False)
    tokens = 24 if quick else 64
    segmenter = medium_model(new_tokens=tokens)
    images, rows = (1, 8) if quick else (2, 32)
    stages = [
        _vision(segmenter, images),
        _prefill(segmenter, images),
        _decode(segmenter, rows),
        _refine(segmenter, 2 if quick else 8),
    ]
    found = [_share(stage, repeats=2 if quick else 5) for stage in stages]
    whole = _whole(
        segmenter,
        photographs(1 if quick else 4, 1),
        {row["stage"]: row["products GFLOP/s"] for row in found},
        tokens,
    )
    shares = {row["stage"]: row["share"] for row in found} | {"whole job": whole["share"]}
    targets = [
        Target(f"{name}: share of plain products' speed", shares[name], at_least=least)
        for name, least in TARGETS.items()
    ]
    return Report({"threads": THREADS, "stages": [*found, whole]}, targets)


def _share(stage: Stage, repeats: int) -> dict[str, Any]:
    """Products and stage in turns.

    What the products of the stage's shapes need for its FLOPs, over what the stage takes.
    """
    operands = [(count, _operands(shape)) for count, shape in stage.shapes]
    counted = sum(2 * count * m * k * n for count, (m, k, n) in stage.shapes)
    times = paired({"products": lambda: _multiply(operands), "stage": stage.call}, repeats)
    pairs = zip(times.seconds["products"], times.seconds["stage"], strict=True)
    share = statistics.median((stage.flops / taken) / (counted / plain) for plain, taken in pairs)
    return {
        "stage": stage.name,
        "GFLOP": stage.flops / 1e9,
        "ms": times.median("stage") * 1e3,
        "GFLOP/s": stage.flops / times.median("stage") / 1e9,
        "products GFLOP/s": counted / times.median("products") / 1e9,
        "share": share,
    }


def _operands(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    m, k, n = shape
    return torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)


def _multiply(operands: Sequence[tuple[int, tuple[Tensor, Tensor, Tensor]]]) -> None:
    for count, (a, b, out) in operands:
        for _ in range(count):
            torch.mm(a, b.T, out=out)


def _encoder_shapes(segmenter: Segmenter, crops: int) -> list[tuple[int, Shape]]:
    v = segmenter.config.vision
    rows, dim = crops * v.n_tokens, v.enc_dim
    return [
        (1, (rows, dim, 3 * dim)),
        (1, (rows, dim, dim)),
        (1, (rows, dim, v.enc_ff_dim)),
        (1, (rows, v.enc_ff_dim, dim)),
    ]


def _decoder_shapes(segmenter: Segmenter, tokens: int) -> list[tuple[int, Shape]]:
    """Of one dense and one expert layer each, as the medium model has as many of both.

    Every expert gets its even share.
    """
    t, moe = segmenter.config.text, segmenter.config.text.moe
    each = max(1, tokens * moe.experts_per_token // moe.num_experts)
    hit = min(moe.num_experts, tokens * moe.experts_per_token)
    attend = [(2, (tokens, t.dim, 3 * t.dim)), (2, (tokens, t.dim, t.dim))]
    dense = [(1, (tokens, t.dim, t.ff_dim)), (1, (tokens, t.ff_dim, t.dim))]
    experts = [
        (hit, (each, t.dim, 2 * moe.expert_inner_dim)),
        (hit, (each, moe.expert_inner_dim, t.dim)),
    ]
    return attend + dense + experts


def _vision(segmenter: Segmenter, images: int) -> Stage:
    v, crops = segmenter.config.vision, 9 * images
    pixels = torch.randn(crops, 3, v.crop_size, v.crop_size)
    encoder = segmenter.model.model.vision
    return Stage(
        "vision",
        flops.encoder(v, crops).flops,
        lambda: encoder(pixels),
        _encoder_shapes(segmenter, crops),
    )


def _prefill(segmenter: Segmenter, images: int) -> Stage:
    t = segmenter.config.text
    image_IPD, prefix = torch.randn(images, t.prefix_attn - 1, t.dim), t.prefix_attn
    return Stage(
        "prefill",
        flops.decoder(t, images * prefix, prefix).flops,
        lambda: prefill_prefix(segmenter.model.model, segmenter.config.tokens, image_IPD),
        _decoder_shapes(segmenter, images * prefix),
    )


def _decode(segmenter: Segmenter, rows: int) -> Stage:
    """Steps in the middle of paths, all rows in use."""
    t = segmenter.config.text
    engine = Engine(
        segmenter.model.model,
        segmenter.config.tokens,
        segmenter.stages.token_selector,
        max_batch_size=rows,
    )
    asked = segmenter.pipeline.encode(photographs(1, 1).asked())
    (image_PD, ((_, prompt),)) = next(iter(asked))
    batch = started_batch(engine, [(image_PD, [(row, prompt) for row in range(rows)])])
    for _ in range(6):
        batch.step()
    seen = t.prefix_attn + len(prompt.ids) + 8
    decode = flops.decoder(t, rows, seen) + flops.vocabulary(t, rows)
    shapes = [(t.n_layers // 2 * count, shape) for count, shape in _decoder_shapes(segmenter, rows)]
    return Stage("decode", decode.flops, batch.step, [*shapes, (1, (rows, t.dim, t.vocab_size))])


def _refine(segmenter: Segmenter, rows: int) -> Stage:
    v, r, head = segmenter.config.vision, segmenter.config.refiner, segmenter.model.head
    pixels = np.random.default_rng(0).integers(
        0, 256, (rows, v.crop_size, v.crop_size, 3), dtype=np.uint8
    )
    masks = (torch.rand(rows, v.crop_size, v.crop_size) > 0.5).float()

    def refine() -> None:
        final, early = segmenter.stages.encode_crops(pixels)
        head.iterate(head.fuse(final, early), masks, segmenter.stages.refiner_iterations)

    passes = (
        flops.fusion(r, v.grid) + flops.refiner_pass(r, v) * segmenter.stages.refiner_iterations
    )
    work = flops.encoder(v, rows) + passes * rows
    return Stage("refine", work.flops, refine, _encoder_shapes(segmenter, rows))


def _whole(
    segmenter: Segmenter, work: Work, speed: dict[str, float], tokens: int
) -> dict[str, Any]:
    """The time that a job's FLOPs need at the speed of plain products, over the time that it takes.

    Files and threads are left out.
    """
    load = Workload(
        queries_per_image=work.rows // len(work.images),
        path_tokens=tokens - 1,
        batch_rows=work.rows,
        dtype="float32",
        refiner_iterations=segmenter.stages.refiner_iterations,
    )
    names = {
        "encode": "vision",
        "prefill": "prefill",
        "prompt": "decode",
        "decode": "decode",
        "refine": "refine",
    }
    needed = [
        (stage.per_row * stage.flops * work.rows, speed[names[stage.name]] * 1e9)
        for stage in stages_of(segmenter.config, load)
    ]
    times = paired(
        {"job": lambda: [answer.result() for _, answer in segmenter.stream(work.asked())]},
        repeats=1,
    )
    flops, least = sum(flops for flops, _ in needed), sum(flops / rate for flops, rate in needed)
    taken = times.median("job")
    return {
        "stage": "whole job",
        "GFLOP": flops / 1e9,
        "ms": taken * 1e3,
        "GFLOP/s": flops / taken / 1e9,
        "products GFLOP/s": flops / least / 1e9,
        "share": least / taken,
    }


if __name__ == "__main__":
    main("limit", run, threads=THREADS)
