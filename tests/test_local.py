"""The nightly deployment end to end: the services of compose.yaml as processes, and a run."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import psutil
import pytest

from tests.support.folders import ROOT
from tests.support.tables import png, write_input
from wordmask.tasks.output.catalog import status
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.storage import Store

LOCAL = ROOT / "deploy/local"
NIGHT_SECONDS = 400
EVERY_FIVE_SECONDS = "* * * * * */5"
# `wordmask schedule` as it is, but for the model, which answers at once.
SCHEDULE = """
import wordmask.flows.schedule
whole = wordmask.flows.schedule.make_deployment
def of_fakes(*args, **options):
    made = whole(*args, **options)
    made["deployments"][0]["parameters"]["factory"] = "tests.support.fakes:FakeSegmenter"
    return made
wordmask.flows.schedule.make_deployment = of_fakes
from wordmask.flows.cli.app import main
main()
"""


def load_up() -> ModuleType:
    loader = SourceFileLoader("up", str(LOCAL / "up"))
    spec = importlib.util.spec_from_loader("up", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_without_postgresql_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    up = load_up()
    monkeypatch.setattr(up, "DEBIAN_POSTGRES", tmp_path)
    monkeypatch.setattr(up.shutil, "which", lambda name: None)
    with pytest.raises(up.StartError, match=r"Install PostgreSQL .* or take --sqlite"):
        up.postgres_programs()


def test_postgresql_is_not_root_and_must_reach_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    up = load_up()
    monkeypatch.setattr(up.os, "geteuid", lambda: 0)
    (tmp_path / "private").mkdir(mode=0o700)
    with pytest.raises(up.StartError, match=f"{tmp_path}/private.*--sqlite"):
        up.unprivileged(tmp_path / "private")
    assert up.unprivileged(Path("/")) in ("postgres", "nobody")


class Night:
    """All services, up."""

    def __init__(self, state: Path, environ: dict[str, str], *, postgres: bool) -> None:
        self.state = state
        self.environ = environ
        self.postgres = postgres

    def run(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(LOCAL / program), str(self.state), *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=330, check=False, env=self.environ
        )

    def processes(self) -> list[psutil.Process]:
        """PostgreSQL hides its environment; the others' children have theirs."""
        found = []
        for process in psutil.process_iter():
            try:
                words, environ = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            if environ.get("WORDMASK_LOCAL") == str(self.state) or any(
                str(self.state) in word for word in words
            ):
                found.append(process)
        return found

    def ask(self, path: str, **body: Any) -> Any:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(
            f"{self.environ['PREFECT_API_URL']}/{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def logs(self) -> str:
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}"
            for log in sorted((self.state / "logs").iterdir())
        )


@pytest.fixture(scope="module")
def night() -> Iterator[Night]:
    try:
        load_up().postgres_programs()
        database = ()
    except Exception as error:
        warnings.warn(f"Prefect is on SQLite here, not on PostgreSQL: {error}", stacklevel=1)
        database = ("--sqlite",)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "AWS_", "DASK_"))
    }
    # Asked often, as it is for a minute only; and a schedule of seconds need not be filled an hour
    # ahead.
    often = {
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "3",
    }
    with tempfile.TemporaryDirectory(prefix="wordmask-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL, which is another user, is to find its own
        made = Night(
            Path(folder, "state"), kept | often | {"PYTHONPATH": str(ROOT)}, postgres=not database
        )
        up = made.run("up", *database)
        assert up.returncode == 0, up.stderr
        try:
            for line in (made.state / "env").read_text().splitlines():
                name, _, value = line.removeprefix("export ").partition("=")
                made.environ[name] = shlex.split(value)[0]
            yield made
        finally:
            down = made.run("down")
            assert down.returncode == 0, down.stderr


@pytest.mark.timeout(900)
def test_a_night_that_its_schedule_started_and_all_that_it_needed(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.setenv(name, night.environ[name])
    table = write_input(
        tmp_path / "in.parquet",
        [{"image": png(i), "query": f"thing {i}" if i else ""} for i in range(9)],
    )
    Store.open("s3://lake/queries").write_bytes("in.parquet", Path(table).read_bytes())

    words = (
        "s3://lake/queries/",
        "s3://lake/masks/",
        "--scheduler",
        night.environ["WORDMASK_SCHEDULER"],
        "--shard-rows",
        "2",
    )
    command = [
        sys.executable,
        "-c",
        SCHEDULE,
        "schedule",
        *words,
        "--cron",
        EVERY_FIVE_SECONDS,
        "--apply",
        "--json",
    ]
    scheduled = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env=night.environ
    )
    assert scheduled.returncode == 0, scheduled.stderr
    deployment = json.loads(scheduled.stdout)["deployment_id"]

    run = first_ended_run(night)
    assert (run["state_type"], run["deployment_id"], run["auto_scheduled"]) == (
        "COMPLETED",
        deployment,
        True,
    ), night.logs()
    assert run["created_by"]["type"] == "SCHEDULE"
    (summary, *_) = reversed(status(Store.open("s3://lake/masks")).runs)
    assert (summary.rows, summary.masks, summary.rejects, summary.shards) == (
        9,
        8,
        {"empty_query": 1},
        5,
    )
    found = verify_output(Store.open("s3://lake/masks"))
    assert (found.holds, found.rows) == (True, 9)
    if night.postgres:
        assert asyncio.run(kept_by_postgres(night)) == run["name"]

    listening = {
        at.laddr.ip
        for each in night.processes()
        for at in each.net_connections()
        if at.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert "is up already" in night.run("up").stderr
    assert len(night.processes()) >= 8, (
        "database, store, scheduler, two nannies with a worker each, server, worker"
    )
    assert night.run("down").returncode == 0
    assert [
        process.cmdline()
        for process in night.processes()
        if process.status() != psutil.STATUS_ZOMBIE
    ] == []


def first_ended_run(night: Night) -> dict[str, Any]:
    give_up = time.monotonic() + NIGHT_SECONDS
    asked = {
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
        "sort": "END_TIME_DESC",
    }
    while time.monotonic() < give_up:
        if ended := night.ask("flow_runs/filter", **asked):
            found: dict[str, Any] = ended[-1]
            return found
        time.sleep(0.5)
    pytest.fail(f"no run ended in {NIGHT_SECONDS} s\n{night.logs()}")


async def kept_by_postgres(night: Night) -> str:
    """Name of the completed run, as the database has it."""
    port = next(
        at.laddr.port
        for each in night.processes()
        if "postgres" in each.name()
        for at in each.net_connections()
        if at.status == psutil.CONN_LISTEN
    )
    password = (night.state / "postgres.password").read_text()
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user="prefect", password=password, database="postgres"
    )
    try:
        return str(
            await connection.fetchval(
                "select name from flow_run where state_type = 'COMPLETED' order by end_time limit 1"
            )
        )
    finally:
        await connection.close()
