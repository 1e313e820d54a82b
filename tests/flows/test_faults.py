"""One fault of `python -m tests.faults`, which knows them all."""

from __future__ import annotations

import pytest

from tests.faults.__main__ import UndisturbedRuns, try_fault
from tests.faults.bucket import open_bucket
from tests.faults.scenarios import SCENARIOS


def test_a_worker_killed_between_data_and_receipt(
    s3_server: str, shared_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shared_api.items():
        monkeypatch.setenv(name, value)
    (scenario,) = (
        scenario for scenario in SCENARIOS if "between data and receipt" in scenario.name
    )
    with open_bucket(s3_server) as bucket:
        result = try_fault(scenario, bucket, UndisturbedRuns())
    assert result.passed, result
