"""What deploy/ names exists, and its parameters are valid settings."""

from __future__ import annotations

import importlib

import yaml

from schemas.settings import RunSettings
from tests.conftest import ROOT


def test_nightly_deployment_names_a_flow_and_valid_settings() -> None:
    (deployment,) = yaml.safe_load((ROOT / "deploy/prefect.yaml").read_text())["deployments"]
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert flow.name == "segment"
    RunSettings.model_validate(deployment["parameters"]["settings"])
    flow.validate_parameters(deployment["parameters"])
