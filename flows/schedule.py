"""A run as a deployment of a Prefect server: as text for `prefect deploy`, or registered there.

Making the text imports no PyTorch; `register_deployment` does, since it imports the flow.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from wordmask.schemas.commands import ScheduleSettings
from wordmask.schemas.settings import RunSettings


class PrefectServerError(RuntimeError):
    """The Prefect server does not answer, or refuses the deployment."""


def make_deployment(settings: RunSettings, when: ScheduleSettings) -> dict[str, Any]:
    """Return the content of a prefect.yaml.

    It holds the settings that are no defaults. Local paths become absolute, since the worker that
    runs it is in another folder.

    Raises:
        ValueError: the cron expression is none, or there is no such time zone.
    """
    _check_schedule("cron", when.cron, "a cron expression such as 0 2 * * *")
    _check_schedule("timezone", when.timezone, "one such as Europe/Berlin")
    parameters = _with_absolute_paths(settings).model_dump(mode="json", exclude_defaults=True)
    deployment = {
        "name": when.name,
        "entrypoint": "wordmask.flows.segment.segment",
        "parameters": {"settings": parameters},
        "schedules": [{"cron": when.cron, "timezone": when.timezone, "active": True}],
        "work_pool": {"name": when.pool},
    }
    return {"name": "wordmask", "deployments": [deployment]}


def _check_schedule(option: str, value: str, example: str) -> None:
    try:
        CronSchedule.model_validate({"cron": "0 2 * * *", option: value})
    except ValidationError:
        raise ValueError(f"--{option} {value}: must be {example}") from None


def _with_absolute_paths(settings: RunSettings) -> RunSettings:
    roots = tuple(map(_absolute, settings.segment.allow_roots))
    segment = settings.segment.model_copy(update={"allow_roots": roots})
    paths = {"input": _absolute(settings.input), "output": _absolute(settings.output)}
    return settings.model_copy(update={**paths, "segment": segment})


def _absolute(path: str) -> str:
    if "://" in path:
        return path
    return os.path.abspath(path)


def register_deployment(prefect_yaml: dict[str, Any]) -> UUID:
    """Register a deployment with the Prefect server and return its id.

    One of the same name is replaced.

    Raises:
        ValueError: no server is named by PREFECT_API_URL or a profile, or it has no such work pool.
        PrefectServerError: it does not answer, or refuses.
    """
    from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    (deployment,) = prefect_yaml["deployments"]
    (schedule,) = deployment["schedules"]
    pool = deployment["work_pool"]["name"]
    url = _check_server(pool)
    from wordmask.flows.segment import segment

    made = segment.to_deployment(
        deployment["name"],
        parameters=deployment["parameters"],
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        schedule=Cron(schedule["cron"], timezone=schedule["timezone"]),
    )
    # Prefect's functions return coroutines too, where an event loop runs.
    assert isinstance(made, RunnerDeployment)
    try:
        deployment_id = made.apply()
    except DeploymentApplyError as error:
        raise PrefectServerError(
            f"{url}: refuses the deployment {deployment['name']} ({error})"
        ) from error
    assert isinstance(deployment_id, UUID)
    return deployment_id


def _check_server(pool: str) -> str:
    """Return the address of the Prefect server, which has the work pool. Raises as the caller."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        raise ValueError(
            "--apply: no Prefect server is named. Start one with `prefect server start`, and set"
            " PREFECT_API_URL"
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pool(pool)
    except ObjectNotFound:
        raise ValueError(
            f"--pool {pool}: {url} has none of that name. Make it: `prefect work-pool create {pool}"
            " --type process`"
        ) from None
    except httpx.HTTPError as error:
        raise PrefectServerError(
            f"PREFECT_API_URL {url}: no Prefect server answers there ({error})"
        ) from None
    return str(url)
