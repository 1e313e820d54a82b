"""Pictures of named things, each in several artists' styles: what `make_scene` cuts its objects
from.

Two libraries have one form: a small one is shipped, and the full one is fetched and rendered once
(`wordmask train scenes --fetch`, `model/train/sprite_sources.py`), then kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from wordmask.model.scenes.nouns import ICONS, NOUNS, UNFIT

SIDE = 96  # pixels of a fetched sprite
SHIPPED = Path(__file__).parent / "assets" / "sprites.npz"
# in test-style alone. Other poses and other colours than the rest (a blue ant), and still plain to
# see
HELD_OUT_STYLE = "noto-v1"
TRAIN_STYLES = ("fluent-emoji-flat", "noto", "twemoji")
REVISION = 1  # of the packages and of how they are rendered: a library of another is fetched anew


@dataclass(frozen=True, kw_only=True)
class Style:
    """An artwork that sprites come from, and what is owed to it. `licence` is an SPDX
    identifier.
    """

    name: str
    author: str
    licence: str
    link: str
    licence_link: str
    package: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SpriteLibrary:
    """N sprites of S x S pixels. A sprite is centred and fills its canvas along its longer side.

    `pixels_NSS4` uint8 RGBA, alpha not multiplied in; `noun_N` and `style_N` are places in `nouns`
    and `styles`.
    """

    nouns: tuple[str, ...]
    styles: tuple[Style, ...]
    noun_N: np.ndarray
    style_N: np.ndarray
    pixels_NSS4: np.ndarray

    @cached_property
    def numbers_of(self) -> dict[str, tuple[int, ...]]:
        """The sprites of each noun."""
        found: dict[str, list[int]] = {noun: [] for noun in self.nouns}
        for number, noun in enumerate(self.noun_N.tolist()):
            found[self.nouns[noun]].append(number)
        return {noun: tuple(numbers) for noun, numbers in found.items()}

    def style_of(self, number: int) -> str:
        """Name of a sprite's style."""
        return self.styles[self.style_N[number]].name

    def only(self, styles: Collection[str]) -> SpriteLibrary:
        """The sprites of some styles, and the nouns that these have. ValueError when there are
        none.
        """
        kept = [place for place, style in enumerate(self.styles) if style.name in styles]
        chosen_N = np.isin(self.style_N, kept)
        if not chosen_N.any():
            raise ValueError(
                f"no sprite is of {sorted(styles)}: the library has"
                f" {[style.name for style in self.styles]}"
            )
        nouns = np.unique(self.noun_N[chosen_N])
        return SpriteLibrary(
            nouns=tuple(self.nouns[noun] for noun in nouns),
            styles=tuple(self.styles[place] for place in kept),
            noun_N=np.searchsorted(nouns, self.noun_N[chosen_N]),
            style_N=np.searchsorted(kept, self.style_N[chosen_N]),
            pixels_NSS4=self.pixels_NSS4[chosen_N],
        )


def load(path: Path | None = None) -> SpriteLibrary:
    """The library of a file, by default the fetched one. FileNotFoundError, with what to do, where
    there is none.
    """
    path = path or fetched_path()
    if not path.is_file():
        remedy = (
            "fetch them with `wordmask train scenes --fetch`, or take the shipped ones with"
            " `--sprites shipped`"
        )
        raise FileNotFoundError(f"sprites {path}: no such file; {remedy}")
    try:
        with np.load(path) as file:
            styles = tuple(Style(**entry) for entry in json.loads(str(file["styles"])))
            numbers = {name: file[name] for name in ("noun_N", "style_N", "pixels_NSS4")}
            return SpriteLibrary(nouns=tuple(file["nouns"].tolist()), styles=styles, **numbers)
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"sprites {path}: not a sprite library ({error}); fetch them anew with `wordmask train"
            " scenes --fetch`"
        ) from error


def load_shipped() -> SpriteLibrary:
    """The small library that comes with the package: 36 nouns, 3 styles."""
    return load(SHIPPED)


def save(library: SpriteLibrary, path: Path) -> None:
    """Write a library; the file appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    styles = json.dumps([asdict(style) for style in library.styles])
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(
                file,
                nouns=np.array(library.nouns),
                styles=np.array(styles),
                noun_N=library.noun_N,
                style_N=library.style_N,
                pixels_NSS4=library.pixels_NSS4,
            )
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def fetched_path() -> Path:
    """Where the fetched library is kept. Its name changes with what is fetched, so an older one is
    not taken for it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made_of = repr((REVISION, SIDE, NOUNS, sorted(ICONS.items()), sorted(UNFIT)))
    return cache / "wordmask" / f"sprites-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.npz"
