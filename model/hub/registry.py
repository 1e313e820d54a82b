"""Which models there are, where their files lie, and which revision names their content.

It imports no torch, so that planning is cheap. A model is `demo` (ships with the package), a local
folder or weight file, or a repository of the Hugging Face hub. The refiner's weights may come from
a second such location.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

DEMO = "demo"
PUBLISHED_MODEL = "moondream/moondream3-preview"
PUBLISHED_REFINER = "moondream/SegHeadRefiner"
PUBLISHED_TOKENIZER = "moondream/starmie-v1"
CONFIG_FILE, TOKENIZER_FILE, CARD_FILE = "config.json", "tokenizer.json", "card.json"
DESCRIPTION = (CONFIG_FILE, TOKENIZER_FILE)  # what is small, and read before any weights
WEIGHT_SUFFIXES = (".safetensors", ".pt")
# In the order of preference.
WEIGHT_PATTERNS = (
    "*.safetensors.index.json",
    "model.safetensors",
    "*.safetensors",
    "model.pt",
    "*.pt",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class ModelError(ValueError):
    """A model that cannot be had. The message says which, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """One location with weights.

    `path` is a local folder or weight file, None for a repository of the hub. `revision` names the
    content: the hub's commit, or 16 hex digits of the files' own hash.
    """

    name: str
    path: Path | None
    revision: str

    def folder(self) -> Path:
        """Return the local folder; a repository's configuration and weights are downloaded first.

        Raises:
            ModelError: the hub does not give them.
        """
        if self.path is None:
            return download_model(self.name, revision=self.revision)
        return _folder_of(self.path)

    def config_folder(self) -> Path:
        """Return the local folder with the configuration and the tokenizer, if there is one.

        Of a repository, these are all that is downloaded.

        Raises:
            ModelError: the hub does not give it.
        """
        if self.path is None:
            return _snapshot(self.name, *DESCRIPTION, revision=self.revision)
        return self.folder()

    def weights(self) -> tuple[Path, ...]:
        """Return the local weight files, downloaded if need be.

        Raises:
            ModelError: there are none, or the hub does not give them.
        """
        if self.path is not None and self.path.is_file():
            return (self.path,)
        return weight_files(self.folder())


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that was found.

    `tokenizer_revision` is the one asked for, where the model takes the published tokenizer.
    """

    name: str
    model: Location
    refiner: Location | None = None
    tokenizer_revision: str | None = None

    @cached_property
    def tokenizer(self) -> Location | None:
        """Where the published tokenizer is, None where the model has its own.

        Raises:
            ModelError: the hub does not give it.
        """
        if (self.model.config_folder() / TOKENIZER_FILE).is_file():
            return None
        folder = _snapshot(PUBLISHED_TOKENIZER, TOKENIZER_FILE, revision=self.tokenizer_revision)
        return Location(name=PUBLISHED_TOKENIZER, path=None, revision=folder.name)

    @property
    def revision(self) -> str:
        """What names the content of all that answers come from: `MODEL[+REFINER][~TOKENIZER]`.

        A refiner and a tokenizer of their own have a part each. Raises as `tokenizer` does.
        """
        revision = self.model.revision
        if self.refiner is not None:
            revision += f"+{self.refiner.revision}"
        if self.tokenizer is not None:
            revision += f"~{self.tokenizer.revision}"
        return revision

    def tokenizer_file(self) -> Path:
        """Return the model's own tokenizer.json, else the published one.

        Raises:
            ModelError: the published one cannot be downloaded.
        """
        published = self.tokenizer
        if published is None:
            return self.model.config_folder() / TOKENIZER_FILE
        folder = _snapshot(published.name, TOKENIZER_FILE, revision=published.revision)
        return folder / TOKENIZER_FILE


def resolve_model(
    name: str, *, refiner: str | None = None, revision: str | None = None
) -> ModelSource:
    """Find a model without reading or downloading its weights (local weights are hashed).

    Args:
        name: `demo`, a local folder or weight file, or a hub repository such as
            `moondream/moondream3-preview`.
        refiner: where the refiner's weights are, in the same terms; by default with the model's.
        revision: branch, tag or commit of a hub repository, or what `ModelSource.revision` was
            before: then a local model must still have that content.

    Raises:
        ModelError: there is no such model, its content is another, or the hub refuses it.
    """
    weights_revision, _, tokenizer_revision = (revision or "").partition("~")
    model_revision, _, refiner_revision = weights_revision.partition("+")
    model = _locate(name, model_revision or None)
    head = None
    if refiner is not None:
        head = _locate(refiner, refiner_revision or None)
    return ModelSource(
        name=name, model=model, refiner=head, tokenizer_revision=tokenizer_revision or None
    )


def download_model(name: str, **hub: Any) -> Path:
    """Return the local folder with configuration, tokenizer and weights of a hub repository.

    They come from the cache where it has them.

    Args:
        name: of the repository.
        hub: options of `huggingface_hub.snapshot_download`: revision, cache_dir, token, ...

    Raises:
        ModelError: the hub does not give them.
    """
    folder = _snapshot(name, "*.json", "*.safetensors", **hub)
    if any(folder.glob("*.safetensors")):
        return folder
    # Some repositories hold the weights in both forms; pickles are fetched only where there is
    # nothing else.
    return _snapshot(name, "*.json", "*.pt", **hub)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a folder.

    They are the shards of a safetensors index, else one safetensors file, else one .pt file.

    Raises:
        ModelError: there is none, there are several to choose from, or a shard of the index is
            missing.
    """
    for pattern in WEIGHT_PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ModelError(
                f"{folder}: holds {', '.join(p.name for p in found)}; name the file to load instead"
                " of the folder"
            )
        if found and pattern.endswith(".json"):
            return _shards(found[0])
        if found:
            return (found[0],)
    raise ModelError(
        f"{folder}: has no weights; expected model.safetensors, an index of safetensors shards, or"
        " a .pt file"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index of safetensors shards lists."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index}: is no index of safetensors shards ({error!r}); it needs a weight_map of"
            " tensor to file"
        ) from error
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ModelError(f"{index}: lists shards that are not there: {', '.join(missing)}")
    return tuple(index.parent / name for name in names)


def _locate(name: str, revision: str | None) -> Location:
    if name == DEMO:
        return _locate_local(name, demo_folder().resolve(), revision)
    path = Path(os.path.expanduser(name))
    if name and path.exists():
        return _locate_local(name, path.resolve(), revision)
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"model {name!r}: no such folder or file, and no hub repository is named so; give"
            f" `{DEMO}`, a path, or owner/name"
        )
    # The commit is the name of the snapshot's folder, online and from the cache alike.
    commit = _snapshot(name, *DESCRIPTION, revision=revision).name
    return Location(name=name, path=None, revision=commit)


def _locate_local(name: str, path: Path, revision: str | None) -> Location:
    if name == DEMO and not any(path.glob("*.safetensors")):
        raise ModelError(
            f"model {DEMO!r}: this installation has no weights in model/assets/demo; name another"
            " model, or train it (model/train)"
        )
    if path.is_file() and path.suffix not in WEIGHT_SUFFIXES:
        raise ModelError(
            f"model {name!r}: is a {path.suffix or 'plain'} file; weights end in"
            f" {' or '.join(WEIGHT_SUFFIXES)}"
        )
    found = _content_hash(path)
    if revision not in (None, found):
        raise ModelError(
            f"model {name!r}: its content is {found}, not {revision} as asked; put the files back,"
            " or leave the revision out"
        )
    return Location(name=name, path=path, revision=found)


def _content_hash(path: Path) -> str:
    """Return a hash over what decides results: configuration, tokenizer and weights.

    Each counts with its name in the folder.
    """
    weights: tuple[Path, ...] = (path,)
    if path.is_dir():
        weights = weight_files(path)
    beside = [_folder_of(path) / CONFIG_FILE, _folder_of(path) / TOKENIZER_FILE]
    present = [file for file in beside if file.is_file()]
    digest = hashlib.sha256()
    for file in (*present, *weights):
        with file.open("rb") as content:
            content_hash = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content_hash}\0".encode())
    return digest.hexdigest()[:16]


def _folder_of(path: Path) -> Path:
    """Return the folder of a weight file, or the folder itself."""
    if path.is_dir():
        return path
    return path.parent


def _snapshot(name: str, *patterns: str, **hub: Any) -> Path:
    """Return the local folder with a hub repository's files that match.

    They are downloaded where the cache does not have them.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **hub))
    except (OSError, ValueError) as error:  # every error of the hub's client is one of these
        reason, *_ = str(error).strip().splitlines() or [""]
        requested = f"model {name!r}"
        if hub.get("revision"):
            requested += f" at {hub['revision']}"
        raise ModelError(
            f"{requested}: the hub does not give it ({type(error).__name__}: {reason})."
            " Check the name and the connection; if it is gated, accept its licence at"
            f" https://huggingface.co/{name} and run `hf auth login`; or give a local folder"
        ) from error


def demo_folder() -> Path:
    """Return the folder of the model that ships with the package."""
    return Path(str(files("wordmask.model"))) / "assets" / DEMO
