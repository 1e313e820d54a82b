"""Versions and the device that an answer, or a failure to give one, may depend on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence

from wordmask.schemas.settings import RunSettings

CODE = "wordmask"
# Of what reads images and tables, of the model, and of what makes masks and paths.
PACKAGES = (
    CODE,
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "numba",
    "pyarrow",
    "vtracer",
    "potracer",
)
DEVICE = "device"


def environment_of(device: str | None = None) -> dict[str, str]:
    """Return the versions of packages in this process, and the name of a device.

    Args:
        device: as in the settings. None: a GPU if there is one, else the CPU.
    """
    # It takes seconds to import, by way of torch. Commands that plan nothing do without it.
    from wordmask.model.runtime.devices import resolve_device

    return _versions() | {DEVICE: _device_name(resolve_device(device))}


def possible_environments(settings: RunSettings) -> list[dict[str, str]]:
    """Return what the environments of a run's workers may be, as far as its planner can know.

    Workers that the run starts are on this machine, on any of its GPUs. Those of a standing cluster
    are known by the version of this package alone, which must be the same there.
    """
    versions = _versions()
    if settings.scheduler is not None:
        return [{CODE: versions[CODE]}]
    import torch

    from wordmask.model.runtime.devices import resolve_device

    device = resolve_device(settings.model.device)
    devices = [device]
    if device == "cuda":
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [versions | {DEVICE: _device_name(each)} for each in devices]


def is_possible(recorded: Mapping[str, str], possible: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a recorded environment is one of those that there may be now."""
    return any(
        all(recorded.get(name) == value for name, value in environment.items())
        for environment in possible
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra, or a checkout that is not installed
    versions.setdefault(CODE, "unknown")
    return versions


def _device_name(device: str) -> str:
    """Return the name of a GPU; for the CPU, which instructions PyTorch takes."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device} {torch.backends.cpu.get_cpu_capability()}"
