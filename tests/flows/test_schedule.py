"""Deployments as text and on a server; `tests/test_local.py` has one that runs."""

from __future__ import annotations

import os

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from wordmask.flows.cli.app import app
from wordmask.flows.schedule import PrefectServerError, make_deployment, register_deployment
from wordmask.schemas.commands import ScheduleSettings
from wordmask.schemas.settings import RunSettings

SETTINGS = RunSettings(input="s3://lake/in/", output="s3://lake/out/")
WHEN = ScheduleSettings(cron="30 1 * * 1-5", timezone="Europe/Berlin")


def test_a_printed_schedule_holds_the_options_of_run() -> None:
    words = [
        "in.parquet",
        "s3://lake/out/",
        "--budget",
        "2h",
        "--allow-root",
        "photos",
        "--scheduler",
        "tcp://dask:8786",
        "--wait",
    ]
    printed = CliRunner().invoke(
        app, ["schedule", *words, "--cron", WHEN.cron, "--timezone", WHEN.timezone]
    )
    assert printed.exit_code == 0, printed.output
    (deployment,) = yaml.safe_load(printed.stdout)["deployments"]
    here = os.getcwd()
    assert RunSettings.model_validate(
        deployment["parameters"]["settings"]
    ) == RunSettings.model_validate(
        {
            "input": f"{here}/in.parquet",
            "output": "s3://lake/out/",
            "budget_seconds": 7200,
            "scheduler": "tcp://dask:8786",
            "wait": True,
            "segment": {"allow_roots": [f"{here}/photos"]},
        }
    )
    assert deployment["schedules"] == [
        {"cron": WHEN.cron, "timezone": WHEN.timezone, "active": True}
    ]


def test_a_schedule_that_could_never_fire_is_refused() -> None:
    with pytest.raises(ValueError, match="--cron at night: must be a cron expression"):
        make_deployment(SETTINGS, WHEN.model_copy(update={"cron": "at night"}))
    with pytest.raises(ValueError, match="--timezone Mars: must be one such as"):
        make_deployment(SETTINGS, WHEN.model_copy(update={"timezone": "Mars"}))


def test_a_missing_server_is_an_error() -> None:
    made = make_deployment(SETTINGS, WHEN)
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(ValueError, match="no Prefect server is named"),
    ):
        register_deployment(made)
    nobody = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: nobody}),
        pytest.raises(PrefectServerError, match=f"PREFECT_API_URL {nobody}: no Prefect"),
    ):
        register_deployment(made)


@pytest.mark.usefixtures("prefect_api")
def test_a_missing_work_pool_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"--pool nonesuch: .* `prefect work-pool create nonesuch --type process`"
    ):
        register_deployment(make_deployment(SETTINGS, WHEN.model_copy(update={"pool": "nonesuch"})))
