"""What people are told about the models that there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wordmask.model.hub import registry
from wordmask.model.hub.registry import (
    CARD_FILE,
    DEMO,
    PUBLISHED_MODEL,
    PUBLISHED_REFINER,
    ModelError,
    weight_files,
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model was trained on and how well it does, for people.

    `results` maps a measure with its unit to its value, or a test to its measures.
    """

    name: str
    description: str
    trained_on: str
    parameters: int
    size_bytes: int
    results: Mapping[str, Any] = field(default_factory=dict)
    results_source: str = "measured by this repository; see the README for the command"
    seed: int | None = None
    steps: int | Mapping[str, int] | None = None


def list_models() -> list[ModelCard]:
    """Return the cards of the built-in model and of the published one.

    The built-in one is left out where its weights are not in this installation.
    """
    cards = [_published_card()]
    if (registry.demo_folder() / CARD_FILE).is_file():
        cards.insert(0, _demo_card())
    return cards


def _demo_card() -> ModelCard:
    """Return the card that training wrote.

    Raises:
        ModelError: it is damaged.
    """
    folder = registry.demo_folder()
    try:
        card = json.loads((folder / CARD_FILE).read_text())
        size = sum(file.stat().st_size for file in weight_files(folder))
        return ModelCard(name=DEMO, size_bytes=size, **card)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder / CARD_FILE}: is no model card: {error}") from error


def _published_card() -> ModelCard:
    paper = {"RefCOCO val, cIoU %": 80.2}
    vendor = {
        "RefCOCO val": 83.2,
        "RefCOCO+ val": 79.1,
        "RefCOCOg val": 80.7,
        "RefCOCO-M": 88.2,
        "LVIS val": 62.6,
    }
    return ModelCard(
        name=PUBLISHED_MODEL,
        description=(
            f"the full-size model, with --refiner {PUBLISHED_REFINER}; gated download of 18 GB,"
            " wants a GPU"
        ),
        trained_on="not published",
        parameters=9_274_774_388,
        size_bytes=18_000_000_000,
        results=paper | {f"{data}, mIoU %": value for data, value in vendor.items()},
        results_source="arXiv 2604.02593 and the vendor's model card; not measured here",
    )
