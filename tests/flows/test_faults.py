"""One fault of `python -m tests.faults`, which knows them all."""

from __future__ import annotations

import pytest

from tests.faults.__main__ import Calm, try_fault
from tests.faults.lake import lake
from tests.faults.scenarios import SCENARIOS


def test_a_worker_killed_between_data_and_receipt(
    s3_server: str, shared_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shared_api.items():
        monkeypatch.setenv(name, value)
    (scenario,) = (
        scenario for scenario in SCENARIOS if "between data and receipt" in scenario.name
    )
    with lake(s3_server) as place:
        result = try_fault(scenario, place, Calm())
    assert result.passed, result
