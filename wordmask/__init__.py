"""Words in, masks out, for whole tables of images. The public names are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wordmask.model.segmenter import Segmenter
    from wordmask.model.types import Query, Segmentation
    from wordmask.tasks.output.results import open_masks

__all__ = ["Query", "Segmentation", "Segmenter", "open_masks"]

HOMES = {
    "Query": "model.types",
    "Segmentation": "model.types",
    "Segmenter": "model.segmenter",
    "open_masks": "tasks.output.results",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wordmask.{HOMES[name]}"), name)
