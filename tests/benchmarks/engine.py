"""Rows a second of the engine and of the published algorithm, with the same weights and threads."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.harness import Paired, Report, Target, main, paired
from tests.benchmarks.models import Work, default_model, medium_model, photographs, scenes
from tests.benchmarks.published import Published
from tests.support.batches import started_batch
from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import FreeDecoding
from wordmask.model.nn.config import BOX_TOKENS
from wordmask.model.segmenter import Segmenter

THREADS = 2
DEFAULT_TARGETS, MEDIUM_TARGETS = {1: 10.0, 8: 16.0}, {1: 1.3, 8: 4.5}  # by queries per image


def run(quick: bool) -> Report:
    """Rows a second of the engine against one row at a time."""
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    small = default_model()
    for queries in (1, 8) if quick else (1, 4, 8):
        work = scenes((64 if quick else 192) // queries, queries)
        rows.append(
            _compare("default", small, work, sample=4 if quick else 12, repeats=1 if quick else 3)
        )
    medium = medium_model(new_tokens=24 if quick else 64)
    asked = [photographs(8 // queries, queries) for queries in ((8,) if quick else (1, 8))]
    rows += [
        _compare("medium", medium, work, sample=1, repeats=1 if quick else 2) for work in asked
    ]
    grammar = _grammar(small, repeats=30 if quick else 200)
    fixed = _deterministic(small, rows=32 if quick else 192, repeats=1 if quick else 3)
    targets.append(
        Target("share of a decoding step that the path grammar costs", grammar, at_most=0.02)
    )
    for row in rows:
        wanted = (DEFAULT_TARGETS if row["model"] == "default" else MEDIUM_TARGETS).get(
            row["queries per image"]
        )
        if wanted:
            name = (
                f"{row['model']} model, {row['queries per image']} queries per image: times the"
                " published rows/s"
            )
            targets.append(Target(name, row["ratio"], at_least=wanted))
    single = {
        "threads": THREADS,
        "grammar, share of a step": grammar,
        "deterministic, times the time": fixed,
    }
    return Report({**single, "rows per second": rows}, targets)


def _deterministic(segmenter: Segmenter, rows: int, repeats: int) -> float:
    """The factor by which batch invariance slows one query per image."""
    fixed, work = default_model(deterministic=True), scenes(rows, 1)

    def drawn(by: Segmenter) -> Callable[[], Any]:
        return lambda: [answer.result() for _, answer in by.stream(work.asked())]

    return paired({"fixed": drawn(fixed), "free": drawn(segmenter)}, repeats, warm_up=0).ratio(
        "fixed", "free"
    )


def _grammar(segmenter: Segmenter, repeats: int) -> float:
    """The extra time of choosing under the grammar, as a share of a step of the full batch."""
    engine = Engine(segmenter.model.model, segmenter.config.tokens, segmenter.stages.token_selector)
    with torch.inference_mode():
        batch = started_batch(engine, segmenter.pipeline.encode(scenes(8, 8).asked()))
        for _ in range(BOX_TOKENS + 1):
            batch.step()
        logits, left = (
            segmenter.model.model.text.logits(batch.state.hidden_BD),
            torch.full_like(batch.state.grammar_B, 50),
        )
        state, free = batch.state.grammar_B.clone(), FreeDecoding()
        times = paired(
            {
                "grammar": lambda: segmenter.stages.token_selector.choose(
                    logits, state, left, near_limit=False
                ),
                "free": lambda: free.choose(logits, state, left),
                "step": batch.step,
            },
            repeats,
        )
    return (times.median("grammar") - times.median("free")) / times.median("step")


def _compare(
    name: str, segmenter: Segmenter, work: Work, *, sample: int, repeats: int
) -> dict[str, Any]:
    """The engine answers all rows, and the published algorithm every n-th of them.

    Rows of one kind cost it the same, each.
    """
    published = Published(segmenter)
    everything = [
        (image, words)
        for image, asked in zip(work.images, work.words, strict=True)
        for words in asked
    ]
    chosen = everything[:: max(1, len(everything) // sample)][:sample]
    tasks: dict[str, Callable[[], Any]] = {
        "published": lambda: [published.segment(*row) for row in chosen],
        "engine": lambda: [answer.result() for _, answer in segmenter.stream(work.asked())],
    }
    segmenter.segment(scenes(1, 1).images[0], scenes(1, 1).words[0][0])  # compiles what is compiled
    times = paired(tasks, repeats, warm_up=0)
    plain, ours = times.median("published") / len(chosen), times.median("engine") / work.rows
    return {
        "model": name,
        "queries per image": len(work.words[0]),
        "rows": work.rows,
        "published": 1 / plain,
        "engine": 1 / ours,
        "ratio": _ratio(times, len(chosen), work.rows),
    }


def _ratio(times: Paired, chosen: int, rows: int) -> float:
    pairs = zip(times.seconds["published"], times.seconds["engine"], strict=True)
    return statistics.median((plain / chosen) / (ours / rows) for plain, ours in pairs)


if __name__ == "__main__":
    main("engine", run, threads=THREADS)
