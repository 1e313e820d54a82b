"""The training flow: the paper's three stages, and tests of what each of them adds.

Only the order of the steps is here. A stage resumes from its own checkpoint, and one that is at its
end is skipped: the same call takes up a stopped run. The tests' scenes are seen by no stage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from wordmask.flows.reporting import stage_artifacts
from wordmask.flows.segment import segment
from wordmask.model.hub.registry import CARD_FILE
from wordmask.model.scenes.splits import SPLITS
from wordmask.model.train.export import export_model
from wordmask.model.train.refiner import train as refiner
from wordmask.model.train.refiner.config import RefinerSettings
from wordmask.model.train.rl import train as rl
from wordmask.model.train.rl.config import RlSettings
from wordmask.model.train.sft import train as sft
from wordmask.model.train.sft.config import PHASES, SftSettings
from wordmask.schemas.settings import ModelSettings, RunSettings, SegmentSettings
from wordmask.schemas.training import TrainSettings
from wordmask.tasks.convert.scenes import export_scenes
from wordmask.tasks.output.results import evaluate
from wordmask.tasks.storage import Store

TEST_SPLITS = tuple(name for name in SPLITS if name.startswith("test"))
MEASURES = ("rows", "miou", "ciou", "boundary_iou", "absent_f1")
# Stage, model folder, refiner iterations: with 0 the path stands alone.
TESTED_MODELS = (
    ("sft", "sft-model", 0),
    ("rl", "model", 0),
    ("rl", "model", 1),
    ("rl", "model", 5),
)


@flow(name="train", validate_parameters=True)
def train(settings: TrainSettings) -> list[dict[str, Any]]:
    """Train a model into `out/model`, test it, and return the table of stages and splits.

    The model's card holds the table too.
    """
    train_sft(settings)
    train_rl(settings)
    train_refiner(settings)
    table = []
    for stage, folder, iterations in TESTED_MODELS:
        for split in TEST_SPLITS:
            scores = score_model(settings, settings.out / folder, split, iterations)
            row = {"stage": stage, "iterations": iterations, "split": split}
            table.append(row | scores)
    write_card(settings.out / "model", table)
    return table


@task(name="sft", cache_policy=NO_CACHE)
def train_sft(settings: TrainSettings) -> None:
    """Train stage 1, and export a model of it."""
    phases = PHASES
    if settings.model is not None:
        phases = phases[-1:]
    options = SftSettings(
        phases=tuple(
            phase.model_copy(update={"steps": _share(phase.steps, settings)}) for phase in phases
        ),
        scenes=settings.scenes,
        workers=settings.workers,
        dtype=settings.dtype,
        model=settings.model,
        lora_rank=settings.lora_rank,
    )
    folder = settings.out / "sft"
    with stage_artifacts("sft") as on_progress:
        sft.train(folder, options, settings.init, settings.device, on_progress)
    export_model(folder, None, settings.out / "sft-model")


@task(name="rl", cache_policy=NO_CACHE)
def train_rl(settings: TrainSettings) -> None:
    """Train stage 2, from the model of stage 1."""
    lora_rank = 0
    if settings.model is not None:
        lora_rank = settings.lora_rank
    full = RlSettings()
    options = RlSettings(
        scenes=settings.scenes,
        lora_rank=lora_rank,
        steps=_share(full.steps, settings),
        eval_scenes=_share(full.eval_scenes, settings),
    )
    model = str(settings.out / "sft-model")
    with stage_artifacts("rl") as on_progress:
        rl.train(settings.out / "rl", options, model, settings.device, on_progress)


@task(name="refiner", cache_policy=NO_CACHE)
def train_refiner(settings: TrainSettings) -> None:
    """Train stage 3 on the coarse masks of stage 2's model, and export the model of all three."""
    full = RefinerSettings()
    options = RefinerSettings(
        scenes=settings.scenes,
        workers=settings.workers,
        steps=_share(full.steps, settings),
        pool_rows=max(full.drawn, _share(full.pool_rows, settings)),
    )
    decoder = settings.out / "rl"
    folder = settings.out / "refiner"
    with stage_artifacts("refiner") as on_progress:
        refiner.train(decoder, folder, options, settings.device, on_progress)
    export_model(decoder, folder, settings.out / "model")


def _share(count: int, settings: TrainSettings) -> int:
    return max(1, round(count * settings.share))


@task(name="test", cache_policy=NO_CACHE)
def score_model(
    settings: TrainSettings, model: Path, split: str, iterations: int
) -> dict[str, Any]:
    """Return a model's scores on a test split, which the pipeline itself segments."""
    folder = settings.out / "tests"
    folder.mkdir(exist_ok=True)
    truth = folder / f"{split}.parquet"
    if not truth.exists():
        export_scenes(
            str(truth), count=settings.test_rows, seed=0, split=split, sprites=settings.scenes
        )
    run = RunSettings(
        input=str(truth),
        output=str(folder / f"{model.name}-{split}-{iterations}"),
        model=ModelSettings(model=str(model)),
        segment=SegmentSettings(refiner_iterations=iterations, early_stop=False),
    )
    segment(run)
    scores = evaluate(Store.open(run.output), Store.open(run.input))
    return {name: getattr(scores, name) for name in MEASURES}


@task(name="card", cache_policy=NO_CACHE)
def write_card(model: Path, table: list[dict[str, Any]]) -> None:
    """Write the table of scores into the model's card, and publish it as an artifact."""
    file = model / CARD_FILE
    card = json.loads(file.read_text())
    card["results"] = {_title(row): _scores(row) for row in table}
    file.write_text(json.dumps(card, indent=1) + "\n")
    create_table_artifact(
        table, key="training", description="what each stage adds, on scenes that none has seen"
    )


def _title(row: dict[str, Any]) -> str:
    return f"{row['split']}, {row['stage']}, {row['iterations']} refinements"


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in MEASURES if row[name] is not None}
