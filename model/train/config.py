"""Settings that all training stages have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wordmask.schemas.settings import Frozen

Seed = Annotated[int, Field(ge=0, description="of fresh weights, scenes and random draws")]
SceneSource = Annotated[
    Literal["fetched", "shipped"], Field(description="artwork that scenes are made of")
]
LearningRate = Annotated[float, Field(gt=0, description="peak of the learning rate")]
Warmup = Annotated[int, Field(ge=1, description="steps until the learning rate is at its peak")]
WeightDecay = Annotated[float, Field(ge=0, description="weight decay of AdamW")]
CheckpointEvery = Annotated[int, Field(ge=1, description="steps from one checkpoint to the next")]
Workers = Annotated[int, Field(ge=0, description="processes that draw scenes ahead of the steps")]
Temperature = Annotated[
    float,
    Field(gt=0, description="of sampling; at 0 all rollouts of a question would be the same"),
]

# The refiner learns from coarse masks as reinforcement learning samples them.
ROLLOUT_TEMPERATURE = 0.5


class StageSettings(Frozen):
    """Settings of one run of a stage."""

    seed: Seed = 0
    scenes: SceneSource = "fetched"
    warmup: Warmup
    weight_decay: WeightDecay
    checkpoint_every: CheckpointEvery
