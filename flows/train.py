"""The training flow: the paper's three stages, then what each of them adds on scenes that none has
seen. Only their order is here.

Every stage goes on from its own checkpoint, and is left at once where it has come to its end: the
same call takes up a stopped run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from wordmask.flows.segment import segment
from wordmask.model.hub.registry import CARD_FILE
from wordmask.model.scenes.splits import SPLITS
from wordmask.model.train.export import export_model
from wordmask.model.train.loop import OnProgress
from wordmask.model.train.refiner import train as refiner
from wordmask.model.train.rl import train as rl
from wordmask.model.train.sft import train as sft
from wordmask.schemas.settings import ModelSettings, RunSettings, SegmentSettings
from wordmask.tasks.convert.scenes import SCENES_PER_SEED, export_scenes
from wordmask.tasks.output.results import evaluate
from wordmask.tasks.storage import Store

TESTS = tuple(name for name in SPLITS if name.startswith("test"))
MEASURES = ("rows", "miou", "ciou", "boundary_iou", "absent_f1")
LOG_ROWS = 200  # of a stage's log in Prefect; its log.csv has all
TESTED = (
    ("sft", "sft-model", (0,)),
    ("rl", "model", (0, 1, 5)),
)  # stage, model folder, refinements: with 0 the path stands alone


class TrainSettings(BaseModel):
    """What the flow trains, on what, and how it is tested."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(
        description="folder of checkpoints, logs, models and tests; an existing one is taken up"
    )
    scenes: Literal["fetched", "shipped"] = Field("fetched", description="artwork of the scenes")
    init: str | None = Field(
        None, description="model folder to start from, instead of fresh weights"
    )
    model: str | None = Field(
        None, description="model of any size to adapt by LoRA, instead of the small one"
    )
    lora_rank: int = Field(16, ge=1, description="of `model`")
    device: str = Field("cpu", description="cpu or cuda")
    share: float = Field(
        1.0, gt=0, le=1, description="share of each stage's steps: small to see whether all runs"
    )
    test_rows: int = Field(1000, ge=1, le=SCENES_PER_SEED, description="rows of each test split")
    workers: int = Field(1, ge=0, description="processes that draw scenes ahead of the training")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the first stage's matrix products"
    )


@flow(name="train", validate_parameters=True)
def train(settings: TrainSettings) -> list[dict[str, Any]]:
    """Train a model into `out/model`, and test it; the table of stages and splits, which its card
    holds too.
    """
    supervised(settings)
    reinforced(settings)
    refined(settings)
    table = [
        {"stage": stage, "iterations": iterations, "split": split}
        | test(settings, settings.out / model, split, iterations)
        for stage, model, refinements in TESTED
        for iterations in refinements
        for split in TESTS
    ]
    write_card(settings.out / "model", table)
    return table


@contextmanager
def reported(stage: str) -> Iterator[OnProgress]:
    """Who to tell of a stage's course, so that Prefect shows how far it is, and its log as a table
    when it ends or is stopped.
    """
    artifact = create_progress_artifact(progress=0.0, key=f"training-{stage}")
    assert isinstance(artifact, UUID)
    rows: list[dict[str, Any]] = []

    def tell(part: str, done: int, steps: int, means: Mapping[str, float]) -> None:
        rows.append(
            {"part": part, "step": done} | {name: round(mean, 4) for name, mean in means.items()}
        )
        update_progress_artifact(
            artifact,
            progress=100.0 * done / steps,
            description=f"{part}: step {done:,} of {steps:,}",
        )

    try:
        yield tell
    finally:
        if rows:
            create_table_artifact(
                rows[:: 1 + len(rows) // LOG_ROWS],
                key=f"training-{stage}-log",
                description="means since the row before",
            )


def _steps(count: int, share: float) -> int:
    return max(1, round(count * share))


@task(name="sft", cache_policy=NO_CACHE)
def supervised(settings: TrainSettings) -> None:
    """Stage 1, and a model folder of it."""
    phases = tuple(
        replace(phase, steps=_steps(phase.steps, settings.share))
        for phase in sft.SftSettings.phases
    )
    options = sft.SftSettings(
        phases=phases if settings.model is None else phases[-1:],
        scenes=settings.scenes,
        workers=settings.workers,
        dtype=settings.dtype,
        model=settings.model,
        lora_rank=settings.lora_rank,
    )
    with reported("sft") as tell:
        sft.train(
            settings.out / "sft",
            options,
            None if settings.init is None else Path(settings.init),
            settings.device,
            tell,
        )
    export_model(settings.out / "sft", None, settings.out / "sft-model")


@task(name="rl", cache_policy=NO_CACHE)
def reinforced(settings: TrainSettings) -> None:
    """Stage 2, from the model of stage 1."""
    full = rl.RlSettings(
        scenes=settings.scenes, lora_rank=0 if settings.model is None else settings.lora_rank
    )
    options = replace(
        full,
        steps=_steps(full.steps, settings.share),
        eval_scenes=_steps(full.eval_scenes, settings.share),
    )
    with reported("rl") as tell:
        rl.train(
            settings.out / "rl", options, str(settings.out / "sft-model"), settings.device, tell
        )


@task(name="refiner", cache_policy=NO_CACHE)
def refined(settings: TrainSettings) -> None:
    """Stage 3, on what the model of stage 2 draws, and the model folder of all three."""
    full = refiner.RefinerSettings(scenes=settings.scenes, workers=settings.workers)
    rows = max(full.drawn, _steps(full.pool_rows, settings.share))
    options = replace(full, steps=_steps(full.steps, settings.share), pool_rows=rows)
    with reported("refiner") as tell:
        refiner.train(settings.out / "rl", settings.out / "refiner", options, tell)
    export_model(settings.out / "rl", settings.out / "refiner", settings.out / "model")


@task(name="test", cache_policy=NO_CACHE)
def test(settings: TrainSettings, model: Path, split: str, iterations: int) -> dict[str, Any]:
    """Scores on a test split, by way of the pipeline itself."""
    folder = settings.out / "tests"
    truth, masks = folder / f"{split}.parquet", folder / f"{model.name}-{split}-{iterations}"
    folder.mkdir(exist_ok=True)
    if not truth.exists():
        export_scenes(
            str(truth), count=settings.test_rows, seed=0, split=split, sprites=settings.scenes
        )
    method = SegmentSettings(refiner_iterations=iterations, early_stop=False)
    segment(
        RunSettings(
            input=str(truth),
            output=str(masks),
            model=ModelSettings(model=str(model)),
            segment=method,
        )
    )
    scores = evaluate(Store.open(str(masks)), Store.open(str(truth)))
    return {name: getattr(scores, name) for name in MEASURES}


@task(name="card", cache_policy=NO_CACHE)
def write_card(model: Path, table: list[dict[str, Any]]) -> None:
    """The table into the model's card, and as an artifact."""
    file = model / CARD_FILE
    results = {
        f"{row['split']}, {row['stage']}, {row['iterations']} refinements": {
            measure: row[measure] for measure in MEASURES if row[measure] is not None
        }
        for row in table
    }
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"results": results}, indent=1) + "\n"
    )
    create_table_artifact(
        table, key="training", description="what each stage adds, on scenes that none has seen"
    )
