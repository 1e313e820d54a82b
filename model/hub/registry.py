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
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

DEMO = "demo"
PUBLISHED_MODEL = "moondream/moondream3-preview"
PUBLISHED_REFINER = "moondream/SegHeadRefiner"
PUBLISHED_TOKENIZER = "moondream/starmie-v1"
CONFIG_FILE, TOKENIZER_FILE, CARD_FILE = "config.json", "tokenizer.json", "card.json"
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
        """Return the local folder with the configuration.

        Of a repository, the configuration is all that is downloaded.

        Raises:
            ModelError: the hub does not give it.
        """
        if self.path is None:
            return _snapshot(self.name, CONFIG_FILE, revision=self.revision)
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

    `revision` is its location's; with a refiner of its own, `<model's>+<refiner's>`.
    """

    name: str
    revision: str
    model: Location
    refiner: Location | None = None

    def tokenizer_file(self) -> Path:
        """Return the model's own tokenizer.json, else the published one.

        Raises:
            ModelError: the published one cannot be downloaded.
        """
        own = self.model.folder() / TOKENIZER_FILE
        if own.is_file():
            return own
        return _snapshot(PUBLISHED_TOKENIZER, TOKENIZER_FILE) / TOKENIZER_FILE


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model was trained on and how well it does, for people.

    `results` maps a measure with its unit to its value, or a test to its measures.
    """

    name: str
    description: str
    trained_on: str
    parameters: int
    size_bytes: int
    results: Mapping[str, Any] = field(default_factory=dict)
    results_source: str = "measured by this repository; see the README for the command"
    seed: int | None = None
    steps: int | Mapping[str, int] | None = None


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
    model_revision, _, refiner_revision = (revision or "").partition("+")
    model = _locate(name, model_revision or None)
    if refiner is None:
        return ModelSource(name=name, revision=model.revision, model=model)
    head = _locate(refiner, refiner_revision or None)
    return ModelSource(
        name=name, revision=f"{model.revision}+{head.revision}", model=model, refiner=head
    )


def list_models() -> list[ModelCard]:
    """Return the cards of the built-in model and of the published one.

    The built-in one is left out where its weights are not in this installation.
    """
    cards = [_published_card()]
    if (_demo_folder() / CARD_FILE).is_file():
        cards.insert(0, _demo_card())
    return cards


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
        return _locate_local(name, _demo_folder().resolve(), revision)
    path = Path(os.path.expanduser(name))
    if name and path.exists():
        return _locate_local(name, path.resolve(), revision)
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"model {name!r}: no such folder or file, and no hub repository is named so; give"
            f" `{DEMO}`, a path, or owner/name"
        )
    # The commit is the name of the snapshot's folder, online and from the cache alike.
    commit = _snapshot(name, CONFIG_FILE, revision=revision).name
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


def _demo_folder() -> Path:
    return Path(str(files("wordmask.model"))) / "assets" / DEMO


def _demo_card() -> ModelCard:
    """Return the card that training wrote.

    Raises:
        ModelError: it is damaged.
    """
    folder = _demo_folder()
    try:
        card = json.loads((folder / CARD_FILE).read_text())
        size = sum(file.stat().st_size for file in weight_files(folder))
        return ModelCard(name=DEMO, size_bytes=size, **card)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder / CARD_FILE}: is no model card: {error}") from error


def _published_card() -> ModelCard:
    paper = {"RefCOCO val, cIoU %": 80.2}
    vendor = {
        "RefCOCO val": 83.2,
        "RefCOCO+ val": 79.1,
        "RefCOCOg val": 80.7,
        "RefCOCO-M": 88.2,
        "LVIS val": 62.6,
    }
    return ModelCard(
        name=PUBLISHED_MODEL,
        description=(
            f"the full-size model, with --refiner {PUBLISHED_REFINER}; gated download of 18 GB,"
            " wants a GPU"
        ),
        trained_on="not published",
        parameters=9_274_774_388,
        size_bytes=18_000_000_000,
        results=paper | {f"{data}, mIoU %": value for data, value in vendor.items()},
        results_source="arXiv 2604.02593 and the vendor's model card; not measured here",
    )
