"""A Prefect API on a database of its own for all flows of the session, and one for commands."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def own_api(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of commands that start a Prefect API of their own, as on a fresh machine.

    A developer's database is not written to.
    """
    return {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}


@pytest.fixture(scope="session")
def shared_api(own_api: dict[str, str], prefect_api: None) -> dict[str, str]:
    """Environment of commands that report to the API of this session.

    Each command is ready some ten seconds earlier.
    """
    from prefect.settings import get_current_settings

    return own_api | {"PREFECT_API_URL": str(get_current_settings().api.url)}
