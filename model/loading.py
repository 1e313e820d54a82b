"""A model that `registry` found, in memory."""

from __future__ import annotations

import torch

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.hub.registry import ModelSource
from wordmask.model.nn.moondream import MoondreamSegmentation


def load_model(
    source: ModelSource, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MoondreamSegmentation:
    """A model for inference, from a checkpoint of any known layout; the weights are held once while
    loading.

    Raises:
        ModelError: its files cannot be had, or its configuration is missing or not ours.
        CheckpointError: its weights do not fit its configuration.
    """
    refiner_files = source.refiner.weights() if source.refiner else ()
    files = source.model.weights()
    return MoondreamSegmentation.from_files(
        source.model.folder(), files, refiner_files, device=device, dtype=dtype
    )


def load_tokenizer(source: ModelSource) -> PathTokenizer:
    """The model's tokenizer, or the published one where it has none. Raises ModelError if that
    cannot be downloaded.
    """
    return PathTokenizer.from_file(source.tokenizer_file())
