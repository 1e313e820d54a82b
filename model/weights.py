"""A model that `registry` found, in memory: its weights, whatever their layout, and its tokenizer."""

from __future__ import annotations

import torch

from model.checkpoints import load_weights
from model.config import MoondreamSegmentationConfig
from model.moondream import MoondreamSegmentation, build_on_meta
from model.registry import CONFIG_FILE, ModelError, ModelSource
from model.tokenizer import PathTokenizer


def load_model(
    source: ModelSource, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MoondreamSegmentation:
    """A model for inference, from a checkpoint of any known layout, with the weights held once while loading.

    Raises:
        ModelError: its files cannot be had, or its configuration is missing or not ours.
        CheckpointError: its weights do not fit its configuration.
    """
    folder = source.model.folder()
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"{folder}: has no {CONFIG_FILE}; give it the model's ({{}} stands for the published full size)"
        )
    try:
        config = MoondreamSegmentationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error
    model = build_on_meta(config)
    refiner_files = source.refiner.weights() if source.refiner else ()
    load_weights(model, source.model.weights(), refiner_files=refiner_files, device=device, dtype=dtype)
    return model.eval()


def load_tokenizer(source: ModelSource) -> PathTokenizer:
    """The model's tokenizer, or the published one where it has none. Raises ModelError if that cannot be downloaded."""
    return PathTokenizer.from_file(source.tokenizer_file())
