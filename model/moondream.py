"""The whole model as one transformers model: `model.{vision,text,region}` and the refiner `head`.

Names are those of the published checkpoints (facts, section 9, format A; `head` for the refiner), so `from_pretrained`
reads them as they are. `model.weights` reads the other published layouts.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from model.config import MoondreamSegmentationConfig
from model.moe import ExpertWeights
from model.refiner import RefinerHead
from model.region import Region
from model.text import TextDecoder
from model.vision import VisionEncoder


class Moondream(nn.Module):
    """The vision-language model that draws the path."""

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

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights scaled by fan-in, zero biases: a start for training, replaced by any checkpoint."""
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
            for token in (module.image_pe, module.mask_tokens, module.iou_token, module.output_pe):
                nn.init.normal_(token, std=0.02 if token is module.image_pe else 1.0)


def parameter_count(model: nn.Module) -> int:
    """Parameters in all, wherever they are (also on the meta device)."""
    return sum(parameter.numel() for parameter in model.parameters())


def build_on_meta(config: MoondreamSegmentationConfig) -> MoondreamSegmentation:
    """A model with every name and shape, and no memory."""
    with torch.device("meta"):
        return MoondreamSegmentation(config)
