"""Load the model and the tokenizer that `hub.registry` found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.hub.registry import ModelSource
from wordmask.model.nn.moondream import MoondreamSegmentation


def load_model(
    source: ModelSource, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MoondreamSegmentation:
    """Load a model for inference from a checkpoint of any known layout.

    The weights are in memory once while they are loaded.

    Raises:
        ModelError: its files cannot be had, or its configuration is missing or not ours.
        CheckpointError: its weights do not fit its configuration.
    """
    refiner_files: Sequence[Path] = ()
    if source.refiner:
        refiner_files = source.refiner.weights()
    files = source.model.weights()
    return MoondreamSegmentation.from_files(
        source.model.folder(), files, refiner_files, device=device, dtype=dtype
    )


def load_tokenizer(source: ModelSource) -> PathTokenizer:
    """Load the model's tokenizer, or the published one where it has none.

    Raises:
        ModelError: the published one cannot be downloaded.
    """
    return PathTokenizer.from_file(source.tokenizer_file())
