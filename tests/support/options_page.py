"""docs/options.md, made from the settings classes: python -m tests.support.options_page."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from tests.support.folders import ROOT
from wordmask.flows.cli.options import SettingOption, fields_of, item_type
from wordmask.schemas.commands import BudgetSettings, ScheduleSettings, TelemetrySettings
from wordmask.schemas.settings import Columns, ModelSettings, RunSettings, SegmentSettings
from wordmask.schemas.training import TrainSettings

PAGE = ROOT / "docs/options.md"

INTRODUCTION = """\
# Options

`wordmask run` takes the options of the first six tables; `wordmask plan` and `wordmask schedule`
take most of them too. `wordmask COMMAND --help` lists what a command takes.

The second column names the field in the parameters of the flows `segment` and `train`, as a
`prefect.yaml` or a Python program gives it. A field without an option is set there only.

This page is made from the settings classes in `schemas/`, where each option is declared once, by
`python -m tests.support.options_page`.
"""

# Title, class, where its fields are in the parameters of a flow.
SECTIONS: tuple[tuple[str, type[BaseModel], str | None], ...] = (
    ("Run", RunSettings, ""),
    ("Model", ModelSettings, "model."),
    ("Masks", SegmentSettings, "segment."),
    ("Columns", Columns, "segment.columns."),
    ("Budget", BudgetSettings, None),
    ("Logs and metrics", TelemetrySettings, None),
    ("Schedule", ScheduleSettings, None),
    ("Training", TrainSettings, ""),
)

NAMES = {"bool": "yes or no", "int": "integer", "float": "number", "str": "text", "Path": "path"}


def page() -> str:
    """Return the text of docs/options.md."""
    parts = [INTRODUCTION]
    for title, settings, prefix in SECTIONS:
        lines = [f"## {title}", "", inspect.getdoc(settings) or "", ""]
        lines += ["| option | field | values | default | meaning |", "|---|---|---|---|---|"]
        for option in fields_of(settings):
            if len(option.path) == 1:
                lines.append(_row(option, prefix))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(option: SettingOption, prefix: str | None) -> str:
    field = ""
    if prefix is not None:
        field = f"`{prefix}{option.path[0]}`"
    cells = [_flag(option), field, _values(option), _default(option), option.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flag(option: SettingOption) -> str:
    if not option.flag.offered:
        return ""
    if option.info.is_required():
        return f"`{option.name.upper()}`"
    names = option.declarations[0].split("/")
    if option.flag.envvar is not None:
        names.append(option.flag.envvar)
    return ", ".join(f"`{name}`" for name in names)


def _values(option: SettingOption) -> str:
    if option.flag.metavar is not None:
        return f"`{option.flag.metavar}`"
    kind = _without_none(option.info.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if item_type(kind) is not None:
        return "texts"
    least, above, most = option.limit("ge"), option.limit("gt"), option.limit("le")
    limits = []
    if least is not None:
        limits.append(f"at least {least:,}")
    if above is not None:
        limits.append(f"above {above:,}")
    if most is not None:
        limits.append(f"at most {most:,}")
    return ", ".join([NAMES[kind.__name__], *limits])


def _default(option: SettingOption) -> str:
    value = option.default
    if option.info.is_required():
        return "required"
    if value is None:
        return ""
    if isinstance(value, bool):
        return {True: "yes", False: "no"}[value]
    return f"`{value}`"


def _without_none(annotation: Any) -> Any:
    kinds = get_args(annotation)
    if type(None) not in kinds:
        return annotation
    (kind,) = (each for each in kinds if each is not type(None))
    return kind


if __name__ == "__main__":
    PAGE.write_text(page())
