"""Golden tensors and their configuration, all taken from the file itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4
Section = TypeVar("Section")


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden file: `config` as in its metadata, and its tensors by full name."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Golden:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return cls(json.loads(file.metadata()["config"]), tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name begins with `prefix`, by the rest of their name."""
        return {
            name.removeprefix(prefix): t
            for name, t in self.tensors.items()
            if name.startswith(prefix)
        }

    def section(self, cls: type[Section], **changed: Any) -> Section:
        """Return a configuration section from the metadata.

        The metadata has entries about the file too, which are left out.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in self.config.items() if key in fields}
        return cls(**(values | changed))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def strided(golden: Golden, name: str) -> tuple[int, Tensor]:
    """Return step and values of a map of which every k-th pixel is kept; k ends its name."""
    ((suffix, values),) = golden.below(f"expected.{name}_sub").items()
    return int(suffix), values
