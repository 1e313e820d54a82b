"""Runs are ordered by when they were published, whatever clocks say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest

from tests.support.runs import GOOD, publish_run, run_all, settings_for
from wordmask.tasks.output import catalog
from wordmask.tasks.output.catalog import RUN_ID, newest_run, next_run_id
from wordmask.tasks.output.garbage import find_garbage
from wordmask.tasks.output.lease import acquire_lease
from wordmask.tasks.storage import Store


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + ahead

    monkeypatch.setattr(catalog, "datetime", Clock)


@pytest.mark.parametrize("ahead", [timedelta(days=400), timedelta(minutes=5), timedelta(0)])
def test_a_run_after_one_of_a_clock_ahead_is_the_newest(
    ahead: timedelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, [GOOD])
    set_clock(monkeypatch, ahead)
    publish_run(run_all(settings), settings)
    set_clock(monkeypatch, timedelta(0))
    settings = settings_for(tmp_path, [GOOD] * 3)
    for _ in range(2):
        published = publish_run(run_all(settings), settings)
        assert newest_run(Store.open(settings.output)) == published
    assert max(path.name for path in (tmp_path / "out/runs").iterdir()).startswith(published.run_id)
    gone = find_garbage(Store.open(settings.output), keep_runs=1).paths
    assert not any(published.run_id in path for path in gone)


def test_a_clock_that_is_behind_the_newest_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = Store.open(str(tmp_path))
    ahead = datetime.now(UTC) + timedelta(days=400)
    newest = f"{ahead:%Y%m%dT%H%M%S}.999999-ffffff"
    output.write_bytes(f"runs/{newest}.json", b"{}")
    found = next_run_id(output)
    assert found > newest
    assert RUN_ID.fullmatch(found)
    (warning,) = caplog.records
    assert "clock is behind the newest run" in warning.message
    assert warning.newest_run == newest  # type: ignore[attr-defined]


def test_a_run_of_any_name_is_followed_by_a_greater_one(tmp_path: Path) -> None:
    output = Store.open(str(tmp_path))
    output.write_bytes("runs/zzz.json", b"{}")
    found = next_run_id(output)
    output.write_bytes(f"runs/{found}.json", b"{}")
    assert max(path.name for path in (tmp_path / "runs").iterdir()) == f"{found}.json"
    assert max(["zzz", found]) == found


def test_a_run_that_publishes_late_is_not_the_newest(tmp_path: Path) -> None:
    """Its clock is ahead, and another run has taken the output over and published meanwhile."""
    output = Store.open(str(tmp_path))
    ahead = f"{datetime.now(UTC) + timedelta(days=400):%Y%m%dT%H%M%S}.999999-ffffff"
    with acquire_lease(output, ahead):
        pass
    with acquire_lease(output, "gc"):
        pass
    with acquire_lease(output) as lease:
        assert lease.run_id > ahead
