"""A model folder of training checkpoints: weights in bfloat16, configuration, tokenizer, card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from wordmask.model.hub.registry import CARD_FILE, TOKENIZER_FILE
from wordmask.model.nn.moondream import MoondreamSegmentation, parameter_count
from wordmask.model.train.loop import CHECKPOINT_FILE
from wordmask.model.train.sft.config import SftSettings
from wordmask.model.train.sft.labels import NAMES
from wordmask.model.train.small_model import trained_model


def export_model(decoder: Path, refiner: Path | None, dest: Path) -> MoondreamSegmentation:
    """Write a model folder; a card that is there keeps its results.

    Args:
        decoder: folder of the supervised stage, or of reinforcement learning.
        refiner: folder of the refiner stage; without it the head is untrained.
        dest: the model folder.

    Returns:
        The model as written.
    """
    trained = trained_model(decoder)
    model, steps = trained.model, {trained.stage: trained.step}
    if refiner is not None:
        saved = torch.load(refiner / CHECKPOINT_FILE, weights_only=True)
        model.head.load_state_dict(saved["head"])
        steps["refiner"] = saved["step"]
    model.to(torch.bfloat16).save_pretrained(dest)
    trained.tokenizer.save(dest / TOKENIZER_FILE)
    _write_card(dest / CARD_FILE, model, steps)
    return model


def _write_card(file: Path, model: MoondreamSegmentation, steps: dict[str, int]) -> None:
    results: dict[str, Any] = {}
    if file.exists():
        results = json.loads(file.read_text())["results"]
    card = {
        "description": (
            "small model of the full architecture, for laptops, tests and demos; knows drawn"
            " things, not the real world"
        ),
        "trained_on": (
            f"synthetic scenes drawn by model/train: {len(NAMES)} things by name, colour, size,"
            " place and relation"
        ),
        "seed": SftSettings.model_fields["seed"].default,
        "steps": steps,
        "parameters": parameter_count(model),
        "results": results,
    }
    file.write_text(json.dumps(card, indent=1) + "\n")
