"""The whole model as one transformers model: `model.{vision,text,region}` and the refiner `head`.

Names are those of the published checkpoints (docs/model.md, Checkpoints, layout A; `head` for the
refiner), so `from_pretrained` reads them as they are. `hub/checkpoints.py` reads every published
layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from wordmask.model.hub.checkpoints import load_weights, raise_misfit
from wordmask.model.hub.registry import (
    CONFIG_FILE,
    ModelError,
    download_model,
    resolve_model,
    weight_files,
)
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moe import ExpertWeights
from wordmask.model.nn.refiner import RefinerHead
from wordmask.model.nn.region import Region
from wordmask.model.nn.text import TextDecoder
from wordmask.model.nn.vision import VisionEncoder

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
OUR_OPTIONS = {"device_map", "dtype", "torch_dtype"}
# Device maps that transformers works out itself.
SPREAD_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


class Moondream(nn.Module):
    """The vision-language model that decodes the box and the path."""

    def __init__(self, config: MoondreamSegmentationConfig) -> None:
        super().__init__()
        self.vision = VisionEncoder(config.vision)
        self.text = TextDecoder(config.text)
        self.region = Region(config.region)


class MoondreamSegmentation(PreTrainedModel):
    """Vision-language model and refiner. `Segmenter` is what runs it."""

    config_class = MoondreamSegmentationConfig
    main_input_name = "crops"
    config: MoondreamSegmentationConfig

    def __init__(self, config: MoondreamSegmentationConfig) -> None:
        super().__init__(config)
        self.model = Moondream(config)
        self.head = RefinerHead(config.refiner, config.vision.grid)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *args: Any, refiner: str | None = None, **kwargs: Any
    ) -> Any:
        """Load a model as transformers' `from_pretrained` does, but strictly, of any layout.

        Args:
            name: a local folder or a hub repository.
            args: for transformers' own loader.
            refiner: where `head.*` comes from if not with the model: a local folder or file, or a
                hub repository.
            kwargs: `revision` and other options of the download, `dtype` (the configuration's by
                default, else float32) and `device_map` (one device). With any further option, or
                several devices, transformers' own loader does the work, which reads layout A only.

        Raises:
            ModelError: the files or the configuration cannot be had.
            CheckpointError: a tensor is missing, not part of the model or misshapen; it is named.
                (transformers itself would warn and go on with random weights.)
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = Path(name)
        if not folder.is_dir():
            folder = download_model(str(name), **hub)
        refiner_files: tuple[Path, ...] = ()
        if refiner:
            refiner_files = resolve_model(refiner).model.weights()
        device = _one_device(kwargs.get("device_map"))
        if args or device is None or not kwargs.keys() <= OUR_OPTIONS:
            return cls._through_transformers(folder, refiner_files, *args, **kwargs)
        return cls.from_files(
            folder,
            weight_files(folder),
            refiner_files,
            device=device,
            dtype=_dtype_of(kwargs.get("dtype", kwargs.get("torch_dtype"))),
        )

    @classmethod
    def _through_transformers(
        cls, folder: Path, refiner_files: Sequence[Path], *args: Any, **kwargs: Any
    ) -> Any:
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(folder, *args, **kwargs)
        missing = sorted(info["missing_keys"])
        if refiner_files:
            missing = [key for key in missing if not key.startswith("head.")]
        misshapen = [
            f"{key} is {tuple(found)}, expected {tuple(shape)}"
            for key, found, shape in info["mismatched_keys"]
        ]
        raise_misfit(str(folder), missing, sorted(info["unexpected_keys"]), misshapen)
        if refiner_files:
            load_weights(
                nn.ModuleDict({"head": model.head}),
                (),
                refiner_files=refiner_files,
                device=model.head.image_pe.device,
                dtype=model.dtype,
            )
        if with_info:
            return model, info
        return model

    @classmethod
    def from_files(
        cls,
        folder: Path,
        files: Sequence[Path],
        refiner_files: Sequence[Path] = (),
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load a model for inference from weight files of any published layout.

        Weights are in memory once while loading, and copied: the files may change afterwards.

        Args:
            folder: where the configuration is.
            files: the weights.
            refiner_files: where `head.*` comes from if not from `files`.
            device: where the model is put.
            dtype: the configuration's by default, else float32.

        Raises:
            ModelError: the configuration is missing or not ours.
            CheckpointError: the weights do not fit it.
        """
        config = read_config(folder)
        with torch.device("meta"):
            model = cls(config)
        dtype = dtype or config.dtype or torch.float32
        load_weights(model, files, refiner_files=refiner_files, device=device, dtype=dtype)
        return model.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Start training with normal weights scaled by fan-in, and zero biases.

        Any checkpoint replaces them.
        """
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ExpertWeights):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)
        elif isinstance(module, TextDecoder):
            nn.init.normal_(module.wte, std=1.0)
        elif isinstance(module, VisionEncoder):
            nn.init.normal_(module.pos_emb, std=0.02)
        elif isinstance(module, Region):
            nn.init.normal_(module.coord_features, std=2.0)
            nn.init.normal_(module.size_features, std=2.0)
        elif isinstance(module, RefinerHead):
            nn.init.normal_(module.image_pe, std=0.02)
            nn.init.normal_(module.mask_tokens, std=1.0)
            nn.init.normal_(module.iou_token, std=1.0)
            nn.init.normal_(module.output_pe, std=1.0)


def read_config(folder: Path) -> MoondreamSegmentationConfig:
    """Read the configuration in a model's folder, published or our own.

    Raises:
        ModelError: it is missing or not ours.
    """
    if not (folder / CONFIG_FILE).is_file():
        full_size = "give it the model's, or {} for the published full size"
        raise ModelError(f"{folder}: has no {CONFIG_FILE}; {full_size}")
    try:
        return MoondreamSegmentationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error


def _one_device(device_map: Any) -> torch.device | None:
    """Return the device of a `device_map` that is one device (the CPU if it is None), else None."""
    if isinstance(device_map, dict):
        if device_map.keys() != {""}:
            return None
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map in SPREAD_DEVICE_MAPS:
        return None
    return torch.device(device_map)


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of an option as transformers takes it; None is the configuration's."""
    if dtype == "auto":
        return None
    if isinstance(dtype, str):
        return getattr(torch, dtype)
    return dtype


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, wherever they are (also on the meta device)."""
    return sum(parameter.numel() for parameter in model.parameters())


def build_on_meta(config: MoondreamSegmentationConfig) -> MoondreamSegmentation:
    """Return a model with every name and shape, and no memory."""
    with torch.device("meta"):
        return MoondreamSegmentation(config)
