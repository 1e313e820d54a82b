"""Where the golden files are: GOLDEN_DIR, or ../shared/golden beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    folder = Path(os.environ.get("GOLDEN_DIR", DEFAULT))
    if not folder.is_dir():
        pytest.fail(
            f"GOLDEN_DIR = {folder}: no such folder; the golden files are what faithful means, so"
            " there is nothing to skip to"
        )
    return folder
