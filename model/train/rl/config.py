"""Settings of reinforcement learning."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from wordmask.model.train.config import (
    ROLLOUT_TEMPERATURE,
    CheckpointEvery,
    LearningRate,
    StageSettings,
    Temperature,
    Warmup,
    WeightDecay,
)


class RlSettings(StageSettings):
    """Settings of one run of reinforcement learning."""

    steps: int = Field(200, ge=0, description="Steps of the run.")
    questions: int = Field(8, ge=1, description="Prompts of a step, each about a scene of its own.")
    rollouts: int = Field(16, ge=2, description="Rollouts of each prompt.")
    learned: int = Field(
        8,
        ge=1,
        description="Rollouts that are learned from: those that differ most from their mean.",
    )
    epochs: int = Field(1, ge=1, description="Times that a step learns from its rollouts.")
    part: int = Field(8, ge=1, description="Prompts of a minibatch.")
    temperature: Temperature = ROLLOUT_TEMPERATURE
    max_tokens: int = Field(
        64,
        ge=1,
        description="Most tokens of a path: fewer than in use, for the few that would not end.",
    )
    clip: float = Field(0.2, ge=0, description="Ratios are bounded to 1 - CLIP .. 1 + CLIP.")
    kl_weight: float = Field(
        0.05, ge=0, description="Weight of the KL divergence to the supervised model."
    )
    learning_rate: LearningRate = 6e-5
    warmup: Warmup = 10
    weight_decay: WeightDecay = 0.0
    lora_rank: int = Field(0, ge=0, description="Of LoRA; 0: the decoder learns whole.")
    eval_every: int = Field(25, ge=1, description="Steps from one evaluation to the next.")
    eval_scenes: int = Field(200, ge=1, description="Validation scenes of an evaluation.")
    checkpoint_every: CheckpointEvery = 10

    @model_validator(mode="after")
    def _learns_from_its_rollouts(self) -> Self:
        if self.learned > self.rollouts:
            raise ValueError(f"learned = {self.learned}: must be 1..{self.rollouts} (rollouts)")
        return self
