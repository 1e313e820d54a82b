"""The command that lists models: models."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from wordmask.flows.cli.console import costs_table, out, print_json, two_columns
from wordmask.flows.cli.options import Json


def models(
    costs: Annotated[
        bool,
        typer.Option(
            "--costs",
            help="Instead: FLOPs, bytes and memory of the full-size model, rows/s by arithmetic.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Say which models there are and what each was trained on.

    Example: [bold]wordmask models --json[/bold]
    """
    from wordmask.model.hub.cards import list_models

    if costs:
        _show_costs(json)
        return
    cards = list_models()
    if json:
        print_json([dataclasses.asdict(card) for card in cards])
        return
    for card in cards:
        rows = [
            ("what", card.description),
            ("trained on", card.trained_on),
            ("parameters", f"{card.parameters:,}"),
            ("size", f"{card.size_bytes / 1e6:,.1f} MB"),
        ]
        rows += [(name, _score_text(value)) for name, value in card.results.items()]
        rows.append(("source", card.results_source))
        out.print(two_columns(card.name, rows))


def _show_costs(json: bool) -> None:
    from wordmask.model.costs.roofline import all_costs
    from wordmask.model.costs.stages import Workload
    from wordmask.model.hub.registry import PUBLISHED_MODEL
    from wordmask.model.nn.config import MoondreamSegmentationConfig

    found = all_costs(MoondreamSegmentationConfig(), Workload())
    if json:
        print_json({"model": PUBLISHED_MODEL, "measured": False} | dataclasses.asdict(found))
    else:
        out.print(costs_table(PUBLISHED_MODEL, found))


def _score_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_score_text(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
