"""The folders of the checkout and beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "model", "schemas")
SHARED = ROOT.parent / "shared"
