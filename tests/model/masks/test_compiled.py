"""Compiled functions where Numba may write neither beside the code nor at home."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from numba.core import caching

from wordmask.model.masks.compiled import compiled
from wordmask.model.runtime.folders import private_temporary_folder


def doubled(number: int) -> int:
    return 2 * number


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave Numba no folder of its own, and return the temporary folder."""
    only_configured = [caching.UserProvidedCacheLocator]
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", only_configured)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_cache_lies_below_the_temporary_folder(nowhere: Path) -> None:
    assert compiled(doubled)(4) == 8
    assert [*private_temporary_folder().rglob("*doubled*.nbi")]
    assert private_temporary_folder().stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_may_write_is_not_used(nowhere: Path, mode: int) -> None:
    private_temporary_folder().chmod(mode)
    assert compiled(doubled)(4) == 8
    assert not [*nowhere.rglob("*.nbi")]


def test_without_a_temporary_folder_each_process_compiles(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere / "missing"))
    assert compiled(doubled)(4) == 8
