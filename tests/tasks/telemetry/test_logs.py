"""What logs and errors say of a run, and what they never do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import REVISION, Gossip
from tests.support.folders import ROOT
from tests.support.runs import plan_of
from tests.support.tables import png, write_input
from wordmask.schemas.commands import LOG_JSON, LOG_QUERIES
from wordmask.schemas.redaction import redacted
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.shard import process_shard
from wordmask.tasks.telemetry import logs
from wordmask.tasks.telemetry.shards import observed_shard


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "s3://AKIA:se/cr+et@lake/a.png: is not below s3://lake",
            "s3://***@lake/a.png: is not below s3://lake",
        ),
        ("no answer from 'http://user@host:9000/x'", "no answer from 'http://***@host:9000/x'"),
        (
            "https://host/a.png?X-Amz-Signature=abc&X-Amz-Date=1 is gone",
            "https://host/a.png?*** is gone",
        ),
        ("leads to http://10.0.0.1/?token", "leads to http://10.0.0.1/?***"),
        ("HTTPS://host/a b.png?sig=abc&se=2026", "HTTPS://host/a b.png?sig=***&se=***"),
        (
            "no file s3://lake/mail/me@home/part-?.parquet",
            "no file s3://lake/mail/me@home/part-?.parquet",
        ),
        ("what is a=b, and why?", "what is a=b, and why?"),
    ],
)
def test_credentials_in_uris_are_hidden_and_the_rest_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("field", ["input", "output"])
def test_settings_take_no_credentials(field: str) -> None:
    values = {"input": "in", "output": "out"} | {field: "s3://AKIA:sesame@lake/x"}
    with pytest.raises(
        ValueError, match=r"s3://\*\*\*@lake/x holds a password.*in the environment"
    ) as caught:
        RunSettings.model_validate(values)
    assert "sesame" not in str(caught.value)
    with pytest.raises(ValueError, match="holds a password") as caught:
        RunSettings.model_validate(
            {
                "input": "in",
                "output": "out",
                "segment": {"allow_roots": ["https://host/?sig=sesame"]},
            }
        )
    assert "sesame" not in str(caught.value)


def test_errors_lose_credentials_and_queries_with_those_that_led_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "open-sesame")
    cause = ValueError("the red\\ncircle", b"bytes stay an argument")
    with (
        pytest.raises(
            OSError, match=r"^\[Errno 5\] \*\*\* failed: 's3://\*\*\*@lake/x'$"
        ) as caught,
        logs.redacted_errors(["the red\ncircle"]),
    ):
        raise OSError(5, "open-sesame failed", "s3://a:b@lake/x") from cause
    assert str(caught.value.__cause__) == "('***', b'bytes stay an argument')"
    with pytest.raises(OSError, match=r"^no space left$"), logs.redacted_errors():
        raise OSError("no space left")


def test_a_long_error_is_cut() -> None:
    assert len(logs.clean("x" * 10**6)) < 2100


@pytest.fixture
def heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[pytest.LogCaptureFixture]:
    """Records of this package, made as in a worker."""
    before = logging.getLogRecordFactory()
    monkeypatch.delenv(LOG_JSON, raising=False)
    logs.set_up()
    caplog.set_level(logging.INFO, logs.logger.name)
    yield caplog
    logging.setLogRecordFactory(before)


def run_one(folder: Path, query: str) -> None:
    write_input(
        folder / "in.parquet",
        [
            {"row_id": "r0", "image": png(), "query": query},
            {"row_id": "r1", "image": b"junk", "query": "x y"},
        ],
    )
    settings = RunSettings(input=str(folder / "in.parquet"), output=str(folder / "out"))
    (shard,) = plan_of(settings, REVISION).shards
    with observed_shard(shard, "run-1", {}, "worker"):
        process_shard(shard, settings, ShardContext(Gossip()))


def test_records_say_which_run_shard_and_row_they_are_about(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    run_one(tmp_path, "unspeakable thing")
    found: list[dict[str, Any]] = [vars(record) for record in heard.records]
    assert [line["message"] for line in found] == ["row rejected", "row rejected", "shard done"]
    assert {line["run_id"] for line in found} == {"run-1"}
    assert len({line["shard_id"] for line in found}) == 1
    assert [(line["row_id"], line["code"]) for line in found[:2]] == [
        ("r0", "model_error"),
        ("r1", "image_unreadable"),
    ]
    assert not any("query" in line for line in found)
    assert "unspeakable" not in repr(found)


def test_queries_are_logged_if_asked_for(
    tmp_path: Path, heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_QUERIES, "1")
    run_one(tmp_path, "unspeakable thing")
    assert [vars(line).get("query") for line in heard.records] == ["unspeakable thing", "x y", None]
    with pytest.raises(MemoryError, match="'unbearable thing' about bytes with"):
        run_one(tmp_path, "unbearable thing")


def test_records_of_any_library_hold_no_credentials() -> None:
    """In a process of its own: what is set up stays."""
    code = """if True:
        import logging, os
        from wordmask.tasks.telemetry import logs
        logs.set_up()
        logs.set_up()
        botocore = logging.getLogger("botocore")
        botocore.error("cannot reach %s with %s", "http://me:you@host/", "open-sesame")
        with logs.log_context(run_id="r"):
            try:
                raise OSError("https://host/x?sig=sesame")
            except OSError:
                logs.logger.exception("went wrong", extra={"detail": "by open-sesame"})
    """
    environ = {"PYTHONPATH": str(ROOT), "MY_SECRET": "open-sesame", LOG_JSON: "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second = done.stderr.splitlines()
    assert first == "cannot reach http://***@host/ with ***"
    said = json.loads(second)
    assert (said["run_id"], said["detail"], said["level"]) == ("r", "by ***", "ERROR")
    assert said["traceback"].endswith("OSError: https://host/x?***")
