"""What a finder yields."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """The words that fill a pattern's slots, and the object that it names then (None: nothing)."""

    slots: dict[str, str]
    target: int | None
