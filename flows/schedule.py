"""A run as a deployment of a Prefect server: as text for `prefect deploy`, or registered there.

PyTorch is imported by neither reading nor printing one, only by `apply`, which imports the flow.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from wordmask.schemas.settings import RunSettings


class PrefectServerError(RuntimeError):
    """The Prefect server does not answer, or refuses the deployment."""


def deployment_of(
    settings: RunSettings, *, cron: str, timezone: str, name: str, pool: str
) -> dict[str, Any]:
    """The content of a prefect.yaml. Of the settings it holds what is not a default; local paths
    become absolute, since whoever runs it stands in another folder.

    Raises:
        ValueError: `cron` is no cron expression, or there is no such time zone.
    """
    for option, value, what in (
        ("cron", cron, "a cron expression such as 0 2 * * *"),
        ("timezone", timezone, "one such as Europe/Berlin"),
    ):
        try:
            CronSchedule.model_validate({"cron": "0 2 * * *", option: value})
        except ValidationError:
            raise ValueError(f"--{option} {value}: must be {what}") from None
    roots = tuple(map(_absolute, settings.segment.allow_roots))
    segment = settings.segment.model_copy(update={"allow_roots": roots})
    settings = settings.model_copy(
        update={
            "input": _absolute(settings.input),
            "output": _absolute(settings.output),
            "segment": segment,
        }
    )
    deployment = {
        "name": name,
        "entrypoint": "wordmask.flows.segment.segment",
        "parameters": {"settings": settings.model_dump(mode="json", exclude_defaults=True)},
        "schedules": [{"cron": cron, "timezone": timezone, "active": True}],
        "work_pool": {"name": pool},
    }
    return {"name": "wordmask", "deployments": [deployment]}


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def apply(prefect_yaml: dict[str, Any]) -> UUID:
    """Register a deployment with the Prefect server, in place of one of the same name. Its id.

    Raises:
        ValueError: no server is named by PREFECT_API_URL or a profile, or it has no such work pool.
        PrefectServerError: it does not answer, or refuses.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.deployments.runner import DeploymentApplyError, EntrypointType
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    (deployment,) = prefect_yaml["deployments"]
    pool = deployment["work_pool"]["name"]
    (schedule,) = deployment["schedules"]
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
    from wordmask.flows.segment import segment

    made = segment.to_deployment(
        deployment["name"],
        parameters=deployment["parameters"],
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        schedule=CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]),
    )
    try:
        return made.apply()
    except DeploymentApplyError as error:
        raise PrefectServerError(
            f"{url}: refuses the deployment {deployment['name']} ({error})"
        ) from error
