"""Settings of the training flow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wordmask.schemas.settings import NO_FLAG, Flag, Frozen

SCENES_PER_SEED = 1_000_000  # tables of different seeds share no scene

Artwork = Literal["fetched", "shipped"]


class TrainSettings(Frozen):
    """What the flow trains, on what, and how it is tested."""

    out: Path = Field(description="Folder of checkpoints, logs and models.")
    scenes: Artwork = Field("fetched", description="Artwork of the scenes.")
    init: Annotated[str | None, Flag(metavar="MODEL")] = Field(
        None, description="Model folder to start from, instead of fresh weights."
    )
    model: str | None = Field(
        None,
        description="Model of any size to adapt by LoRA, instead of training the small one.",
    )
    lora_rank: int = Field(16, ge=1, description="Of --model.")
    device: str = Field("cpu", description="cpu or cuda.")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each stage's steps, up to 1: small to see whether all runs.",
    )
    test_rows: int = Field(1000, ge=1, le=SCENES_PER_SEED, description="Rows of each test split.")
    workers: Annotated[int, NO_FLAG] = Field(
        1, ge=0, description="Processes that draw scenes ahead of the training."
    )
    dtype: Annotated[Literal["float32", "bfloat16"], NO_FLAG] = Field(
        "float32", description="Number format of the first stage's matrix products."
    )
