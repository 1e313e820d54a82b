"""What deploy/ holds is valid by the schemas of those who read it, says the same everywhere, and parses as the commands it calls.

No container was ever started here: there is no Docker engine and no cluster. `tests/test_local.py` runs the same services as processes.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from flows.cli import OF_THIS_PROCESS, _run_settings, app
from flows.schedule import deployment_of
from schemas.settings import RunSettings
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
CLUSTER = yaml.safe_load((DEPLOY / "kubernetes/cluster.yaml").read_text())
NIGHTLY = yaml.safe_load((DEPLOY / "kubernetes/nightly.yaml").read_text())
PODS = {
    "worker": CLUSTER["spec"]["worker"]["spec"],
    "scheduler": CLUSTER["spec"]["scheduler"]["spec"],
    "run": NIGHTLY["spec"]["jobTemplate"]["spec"]["template"]["spec"],
}


def run_settings(words: list[str]) -> RunSettings:
    """What `wordmask run` makes of its arguments."""
    params = typer.main.get_command(app).commands["run"].make_context("run", words).params  # type: ignore[attr-defined]
    return _run_settings(**{name: value for name, value in params.items() if name not in OF_THIS_PROCESS})


def test_nightly_deployment_names_a_flow_and_valid_settings() -> None:
    (deployment,) = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert flow.name == "segment"
    RunSettings.model_validate(deployment["parameters"]["settings"])
    flow.validate_parameters(deployment["parameters"])


def test_prefect_yaml_is_what_schedule_prints() -> None:
    settings = RunSettings(input="s3://lake/queries/", output="s3://lake/masks/")
    printed = deployment_of(settings, cron="0 2 * * *", timezone="UTC", name="nightly", pool="local")
    assert yaml.safe_load((DEPLOY / "prefect.yaml").read_text()) == printed


@pytest.mark.parametrize("command", ["hadolint Dockerfile", "check-jsonschema --builtin-schema vendor.compose-spec compose.yaml"])
def test_checkers_find_nothing(command: str) -> None:
    program, *words = command.split()
    done = subprocess.run([str(BIN / program), *words], cwd=DEPLOY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_has_a_tag_and_ours_the_version_of_the_package() -> None:
    images = [service["image"] for service in COMPOSE.values()] + [pod["containers"][0]["image"] for pod in PODS.values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert all(re.search(r":.*\d+\.\d+|:RELEASE", image) for image in images), images
    assert {image for image in images if image.startswith("wordmask")} == {f"wordmask:{VERSION}"}
    built = {COMPOSE[name]["image"] for name in ("prefect", "worker", "scheduler", "cpu")}
    assert built == {f"wordmask:{VERSION}"}, "one image for server, scheduler and workers"


def test_the_image_is_built_from_the_pinned_versions_and_is_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "--constraint constraints.txt" in text
    assert set(re.findall(r"[\w.-]+==[\w.]+", text)) == set(), "a version here would come to differ from constraints.txt"
    (user,) = re.findall(r"^USER (\d+)", text, re.MULTILINE)
    assert int(user) > 0
    assert all(pod["securityContext"]["runAsUser"] == int(user) for pod in PODS.values())


def test_compose_opens_ports_on_this_machine_alone_and_has_no_default_passwords() -> None:
    assert all(port.startswith("127.0.0.1:") for service in COMPOSE.values() for port in service.get("ports", ()))
    variables = re.findall(r"\$\{(\w+)(\S*?)\}", (DEPLOY / "compose.yaml").read_text().replace(" ", "_"))
    assert {name for name, _ in variables} == {"MINIO_USER", "MINIO_PASSWORD", "POSTGRES_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in variables)


def test_compose_schedules_a_night_on_its_own_dask_cluster() -> None:
    (script,) = [words[2] for words in [shlex.split(COMPOSE["worker"]["command"])] if words[:2] == ["sh", "-c"]]
    (command,) = [shlex.split(part) for part in script.split("&&") if "schedule" in part]
    assert (command[:2], command[-3:]) == (["wordmask", "schedule"], ["--cron", "0 2 * * *", "--apply"])
    settings = run_settings(command[2:-3])
    assert settings.scheduler == "tcp://scheduler:8786"
    assert {COMPOSE[name]["command"].split()[2] for name in ("cpu", "gpu")} == {settings.scheduler}


def test_kubernetes_manifests_are_valid_to_the_last_field() -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(NIGHTLY, version, strict=True)
    # The operator's own kinds hold pods and a service as they are.
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    wrapped = [("Pod", PODS["worker"]), ("Pod", PODS["scheduler"]), ("Service", CLUSTER["spec"]["scheduler"]["service"])]
    for kind, spec in wrapped:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined(name: str) -> None:
    (container,), pod = PODS[name]["containers"], PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    resources: dict[str, dict[str, Any]] = container["resources"]
    assert "memory" in resources["limits"]
    assert {"cpu", "memory"} <= resources["requests"].keys()
    assert all(isinstance(value, str) for part in resources.values() for value in part.values()), "the operator's schema wants text"
    if name != "run":
        probed = container["livenessProbe"]["httpGet"]["port"]
        assert probed in {port["name"] for port in container["ports"]}


def test_kubernetes_runs_a_night_on_its_own_dask_cluster() -> None:
    program, command, *words = PODS["run"]["containers"][0]["args"]
    assert (program, command) == ("wordmask", "run")
    settings = run_settings(words)
    (port,) = [port["port"] for port in CLUSTER["spec"]["scheduler"]["service"]["ports"] if port["name"] == "tcp-comm"]
    assert settings.scheduler == f"tcp://{CLUSTER['metadata']['name']}-scheduler:{port}"
    assert settings.budget_seconds == 6 * 3600
