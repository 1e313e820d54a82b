"""Settings of the supervised stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wordmask.model.train.config import (
    CheckpointEvery,
    LearningRate,
    StageSettings,
    Warmup,
    WeightDecay,
    Workers,
)
from wordmask.schemas.settings import Flag, Frozen


class Phase(Frozen):
    """Part of the run: how long, on what, how fast.

    Queries are cheap where their answers end after the size: ten about an image cost a third more
    than five.
    """

    name: Literal["vision", "box", "path"]
    steps: int = Field(ge=0)
    images: int = Field(ge=1, description="Images of a step.")
    queries: int = Field(ge=1, description="Queries about each image.")
    n_objects: tuple[int, int] = Field((2, 7), description="Fewest and most objects of a scene.")
    learning_rate: LearningRate
    large_share: float = Field(
        0.0, ge=0, le=1, description="Share of scenes that are large enough to be tiled."
    )
    path_every: int = Field(1, ge=1, description="Steps from one with whole paths to the next.")


PHASES: tuple[Phase, ...] = (
    Phase(name="vision", steps=3000, images=32, queries=1, learning_rate=1e-3),
    Phase(name="box", steps=2500, images=8, queries=10, learning_rate=1e-3, path_every=8),
    Phase(
        name="path",
        steps=6000,
        images=8,
        queries=8,
        learning_rate=7e-4,
        large_share=0.12,
        path_every=3,
    ),
)


class SftSettings(StageSettings):
    """Settings of one run of the supervised stage."""

    phases: Annotated[tuple[Phase, ...], Flag(offered=False)] = Field(PHASES, min_length=1)
    steps: tuple[int, int, int] | None = Field(
        None, description="Steps of the phases vision, box and path."
    )
    rate: float = Field(
        1.0, gt=0, description="Factor of the phases' learning rates; with --init, 0.5."
    )
    warmup: Warmup = 200
    average: float = Field(
        0.998, ge=0, le=1, description="Share of the weights' running mean that a step keeps."
    )
    weight_decay: WeightDecay = 0.02
    checkpoint_every: CheckpointEvery = 250
    workers: Workers = 1
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of matrix products (autocast)."
    )
    freeze_vision: bool = Field(
        False,
        description="Train the decoder only; a refiner head trained on the encoder stays valid.",
    )
    model: str | None = Field(
        None,
        description="Model of any size to adapt by LoRA, instead of training the small one;"
        " needs --steps 0 0 N.",
    )
    lora_rank: int = Field(16, ge=1, description="Of --model.")

    @model_validator(mode="after")
    def _every_phase_learns(self) -> Self:
        learning = {phase.name for phase in self.planned_phases() if phase.steps}
        if self.model is not None and learning - {"path"}:
            raise ValueError(
                "phases: a model that is adapted learns by phase path alone; give the others 0"
                " steps"
            )
        if self.freeze_vision and "vision" in learning:
            raise ValueError("freeze_vision leaves phase vision nothing to learn: give it 0 steps")
        return self

    def planned_phases(self) -> list[Phase]:
        """Return the phases, with their steps as `steps` has them."""
        if self.steps is None:
            return [*self.phases]
        return [
            phase.model_copy(update={"steps": steps})
            for phase, steps in zip(self.phases, self.steps, strict=True)
        ]

    def phase_of(self, step: int) -> tuple[Phase, int]:
        """Return the phase that a step is in, and that phase's first step.

        Steps beyond the last are in the last phase.
        """
        *others, last = self.planned_phases()
        start = 0
        for phase in others:
            if step < start + phase.steps:
                return phase, start
            start += phase.steps
        return last, start
