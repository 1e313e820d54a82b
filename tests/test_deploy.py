"""The files of deploy/: valid by their readers' schemas, consistent, and true to the commands.

No container was ever started here: there is no Docker engine and no cluster. `tests/test_local.py`
runs the same services as processes.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import dask
import kubernetes_validate
import pytest
import typer
import yaml
from distributed import Client, LocalCluster, Security

from tests.support.folders import ROOT
from wordmask.flows.cli.app import app
from wordmask.flows.cli.options import build
from wordmask.flows.cli.runs import within_budget
from wordmask.flows.schedule import make_deployment
from wordmask.schemas.commands import BudgetSettings, ScheduleSettings
from wordmask.schemas.settings import RunSettings

BIN = Path(sys.executable).parent
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
CLUSTER = yaml.safe_load((DEPLOY / "kubernetes/cluster.yaml").read_text())
NETWORK = list(yaml.safe_load_all((DEPLOY / "kubernetes/network.yaml").read_text()))
NIGHTLY = yaml.safe_load((DEPLOY / "kubernetes/nightly.yaml").read_text())
PODS = {
    "worker": CLUSTER["spec"]["worker"]["spec"],
    "scheduler": CLUSTER["spec"]["scheduler"]["spec"],
    "run": NIGHTLY["spec"]["jobTemplate"]["spec"]["template"]["spec"],
}


def run_settings(words: list[str]) -> RunSettings:
    """Return the settings that `wordmask run` has with these arguments."""
    params = typer.main.get_command(app).commands["run"].make_context("run", words).params  # type: ignore[attr-defined]
    return within_budget(build(RunSettings, params), build(BudgetSettings, params))


def test_nightly_deployment_names_a_flow_and_valid_settings() -> None:
    (deployment,) = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert flow.name == "segment"
    RunSettings.model_validate(deployment["parameters"]["settings"])
    flow.validate_parameters(deployment["parameters"])


def test_prefect_yaml_is_what_schedule_prints() -> None:
    settings = RunSettings(input="s3://lake/queries/", output="s3://lake/masks/")
    printed = make_deployment(settings, ScheduleSettings())
    assert yaml.safe_load((DEPLOY / "prefect.yaml").read_text()) == printed


@pytest.mark.parametrize(
    "command",
    ["hadolint Dockerfile", "check-jsonschema --builtin-schema vendor.compose-spec compose.yaml"],
)
def test_checkers_find_nothing(command: str) -> None:
    program, *words = command.split()
    done = subprocess.run(
        [str(BIN / program), *words],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_has_a_tag_and_ours_the_version_of_the_package() -> None:
    images = [service["image"] for service in COMPOSE.values()] + [
        pod["containers"][0]["image"] for pod in PODS.values()
    ]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert all(re.search(r":.*\d+\.\d+|:RELEASE", image) for image in images), images
    assert {image for image in images if image.startswith("wordmask")} == {f"wordmask:{VERSION}"}
    built = {COMPOSE[name]["image"] for name in ("prefect", "worker", "scheduler", "cpu")}
    assert built == {f"wordmask:{VERSION}"}, "one image for server, scheduler and workers"


def test_the_image_is_built_from_the_pinned_versions_and_is_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "--constraint constraints.txt" in text
    assert set(re.findall(r"[\w.-]+==[\w.]+", text)) == set(), (
        "a version here would come to differ from constraints.txt"
    )
    (user,) = re.findall(r"^USER (\d+)", text, re.MULTILINE)
    assert int(user) > 0
    assert all(pod["securityContext"]["runAsUser"] == int(user) for pod in PODS.values())


def test_any_user_of_the_images_group_can_write_its_home() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (home,) = re.findall(r"--home-dir (\S+)", text)
    assert f"ENV HOME={home}\nWORKDIR {home}\n" in text
    assert "--gid 0" in text
    assert f"chmod -R g=u {home}" in text


def test_compose_opens_ports_on_this_machine_alone_and_has_no_default_passwords() -> None:
    assert all(
        port.startswith("127.0.0.1:")
        for service in COMPOSE.values()
        for port in service.get("ports", ())
    )
    variables = re.findall(
        r"\$\{(\w+)(\S*?)\}", (DEPLOY / "compose.yaml").read_text().replace(" ", "_")
    )
    assert {name for name, _ in variables} == {"MINIO_USER", "MINIO_PASSWORD", "POSTGRES_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in variables)


def test_compose_schedules_a_night_on_its_own_dask_cluster() -> None:
    (script,) = [
        words[2]
        for words in [shlex.split(COMPOSE["worker"]["command"])]
        if words[:2] == ["sh", "-c"]
    ]
    (command,) = [shlex.split(part) for part in script.split("&&") if "schedule" in part]
    assert (command[:2], command[-3:]) == (
        ["wordmask", "schedule"],
        ["--cron", "0 2 * * *", "--apply"],
    )
    settings = run_settings(command[2:-3])
    assert settings.scheduler == "tcp://scheduler:8786"
    assert {COMPOSE[name]["command"].split()[2] for name in ("cpu", "gpu")} == {settings.scheduler}
    assert [COMPOSE[name]["profiles"] for name in ("cpu", "gpu")] == [["cpu"], ["gpu"]], (
        "either, not both"
    )


def dask_told(environ: dict[str, str]) -> dict[str, Any]:
    """Dask's configuration in a process of that environment."""
    told: dict[str, Any] = dask.config.merge(
        dask.config.config, dask.config.collect(paths=[], env=environ)
    )
    return told


def test_schedulers_tell_of_a_workers_death_at_once() -> None:
    name = "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"
    (of_pod,) = [
        each["value"] for each in PODS["scheduler"]["containers"][0]["env"] if each["name"] == name
    ]
    for value in (of_pod, COMPOSE["scheduler"]["environment"][name]):
        assert (
            dask.config.get(
                "distributed.scheduler.allowed-failures", config=dask_told({name: value})
            )
            == 0
        )
    assert f'"{name}": "0"' in (DEPLOY / "local/up").read_text()


def test_only_runs_and_its_own_pods_reach_the_dask_cluster() -> None:
    inside, scheduler = NETWORK
    own = {"dask.org/cluster-name": CLUSTER["metadata"]["name"]}
    assert inside["spec"]["podSelector"]["matchLabels"] == own
    assert inside["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
    assert (
        scheduler["spec"]["podSelector"]["matchLabels"]
        == CLUSTER["spec"]["scheduler"]["service"]["selector"]
    )
    ((rule,), labels) = (
        scheduler["spec"]["ingress"],
        NIGHTLY["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"],
    )
    assert rule["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert {port["port"] for port in rule["ports"]} <= {
        port["name"] for port in PODS["scheduler"]["containers"][0]["ports"]
    }


def test_slurm_runs_a_night_by_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("slurm", DEPLOY / "slurm.py")
    assert spec is not None
    assert spec.loader is not None
    slurm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(slurm)
    asked: dict[str, Any] = {}
    calls: list[list[str]] = []

    class Local(LocalCluster):  # type: ignore[misc]
        """Stands for dask-jobqueue's."""

        def __init__(self, *, protocol: str, security: Security, **options: Any) -> None:
            asked.update(
                options, failures=dask.config.get("distributed.scheduler.allowed-failures")
            )
            super().__init__(
                n_workers=1,
                processes=False,
                dashboard_address=None,
                protocol=protocol,
                security=security,
            )

        def scale(self, n: int = 0, *, jobs: int | None = None) -> None:
            if jobs is None:
                super().scale(n)
            asked["jobs"] = asked.get("jobs", jobs)

    def call(command: list[str], env: dict[str, str]) -> int:
        calls.append(command)
        assert Path(asked["shared_temp_directory"]).stat().st_mode & 0o077 == 0, "keys lie there"
        with (
            dask.config.set(dask_told(env)),
            Client(command[command.index("--scheduler") + 1]) as client,
        ):
            assert len(client.scheduler_info()["workers"]) == 1
        return 7

    module = types.ModuleType("dask_jobqueue")
    module.SLURMCluster = Local  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    monkeypatch.setattr(slurm.subprocess, "call", call)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "slurm.py",
            "in",
            "out",
            "--partition",
            "gpu",
            "--jobs",
            "3",
            "--shared",
            str(tmp_path),
            "--budget",
            "6h",
        ],
    )
    with pytest.raises(SystemExit, match="7"):
        slurm.main()
    ((_, *words),) = calls
    assert (words[:4], words[5:]) == (["run", "in", "out", "--scheduler"], ["--budget", "6h"])
    assert words[4].startswith("tls://")
    assert (asked["jobs"], asked["queue"], asked["failures"]) == (3, "gpu", 0)
    assert list(tmp_path.iterdir()) == [], "no key is left"


def test_kubernetes_manifests_are_valid_to_the_last_field() -> None:
    version = kubernetes_validate.latest_version()
    for manifest in (NIGHTLY, *NETWORK):
        kubernetes_validate.validate(manifest, version, strict=True)
    # The operator's own kinds hold pods and a service as they are.
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    wrapped = [
        ("Pod", PODS["worker"]),
        ("Pod", PODS["scheduler"]),
        ("Service", CLUSTER["spec"]["scheduler"]["service"]),
    ]
    for kind, spec in wrapped:
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec},
            version,
            strict=True,
        )


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined(name: str) -> None:
    (container,), pod = PODS[name]["containers"], PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    resources: dict[str, dict[str, Any]] = container["resources"]
    assert "memory" in resources["limits"]
    assert {"cpu", "memory"} <= resources["requests"].keys()
    assert all(isinstance(value, str) for part in resources.values() for value in part.values()), (
        "the operator's schema wants text"
    )
    if name != "run":
        probed = container["livenessProbe"]["httpGet"]["port"]
        assert probed in {port["name"] for port in container["ports"]}


def test_kubernetes_runs_a_night_on_its_own_dask_cluster() -> None:
    program, command, *words = PODS["run"]["containers"][0]["args"]
    assert (program, command) == ("wordmask", "run")
    settings = run_settings(words)
    (port,) = [
        port["port"]
        for port in CLUSTER["spec"]["scheduler"]["service"]["ports"]
        if port["name"] == "tcp-comm"
    ]
    assert settings.scheduler == f"tcp://{CLUSTER['metadata']['name']}-scheduler:{port}"
    assert settings.budget_seconds == 6 * 3600
