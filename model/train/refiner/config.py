"""Settings of the refiner stage."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from wordmask.model.train.config import (
    ROLLOUT_TEMPERATURE,
    CheckpointEvery,
    LearningRate,
    Seed,
    StageSettings,
    Temperature,
    Warmup,
    WeightDecay,
    Workers,
)


class RefinerSettings(StageSettings):
    """Settings of one run of the refiner stage."""

    seed: Seed = 1
    steps: int = Field(4000, ge=0, description="Steps of the run.")
    batch: int = Field(24, ge=1, description="Rows of a step.")
    learning_rate: LearningRate = 1e-3
    warmup: Warmup = 100
    weight_decay: WeightDecay = 0.01
    others: float = Field(
        0.1, ge=0, le=1, description="Weight of the masks that are not the best of the four."
    )
    drawn: int = Field(
        12,
        ge=0,
        description="Rows of a step that are rollouts; the others are perturbed ground truth.",
    )
    rollouts: int = Field(4, ge=1, description="Rollouts of each prompt.")
    pool_rows: int = Field(
        2400, ge=1, description="Rollouts that are sampled before the first step."
    )
    temperature: Temperature = ROLLOUT_TEMPERATURE
    checkpoint_every: CheckpointEvery = 250
    workers: Workers = 1

    @model_validator(mode="after")
    def _has_enough_rollouts(self) -> Self:
        most = min(self.batch, self.pool_rows)
        if self.drawn > most:
            raise ValueError(f"drawn = {self.drawn}: must be 0..{most} (batch, pool_rows)")
        return self
