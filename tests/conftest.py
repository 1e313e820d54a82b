"""Fixtures of every part: real photographs, a real S3-compatible server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folders import ROOT, SHARED, SLOW
from tests.support.servers import serve_s3

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the tests that take long")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("fast") or not collection_path.is_relative_to(ROOT):
        return None
    return collection_path.relative_to(ROOT).as_posix() in SLOW or None


@pytest.fixture(scope="session")
def coco100() -> Path:
    """The folder of 100 real photographs; tests read it in place."""
    folder = SHARED / "data" / "coco100"
    if not folder.is_dir():
        pytest.fail(f"{folder} is not there: these tests are about real photographs")
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real S3-compatible server on this machine."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a bucket, with the environment that reaches it."""
    variables = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return "s3://lake"
