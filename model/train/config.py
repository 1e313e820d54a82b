"""Settings that all training stages have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wordmask.schemas.settings import Frozen

Seed = Annotated[int, Field(ge=0, description="Seed of fresh weights, scenes and samples.")]
SceneSource = Annotated[Literal["fetched", "shipped"], Field(description="Artwork of the scenes.")]
LearningRate = Annotated[float, Field(gt=0, description="Peak of the learning rate.")]
Warmup = Annotated[int, Field(ge=1, description="Steps until the learning rate is at its peak.")]
WeightDecay = Annotated[float, Field(ge=0, description="Weight decay of AdamW.")]
CheckpointEvery = Annotated[int, Field(ge=1, description="Steps from one checkpoint to the next.")]
Workers = Annotated[
    int, Field(ge=0, description="Processes that draw scenes ahead of the training.")
]
Temperature = Annotated[
    float,
    Field(
        gt=0,
        description="Of the sampled rollouts; must be positive, or all of a prompt are the same.",
    ),
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
