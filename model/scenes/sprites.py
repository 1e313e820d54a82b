"""Sprites: pictures of named things in several artists' styles, which objects are cut from.

Two libraries have one form. A small one is shipped; the full one is fetched and rendered once
(`wordmask train scenes --fetch`, `sprite_sources.py`), then kept in the cache folder.
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
# Only in the split test-style: other poses and other colours than the rest (a blue ant), and still
# plain to see.
HELD_OUT_STYLE = "noto-v1"
TRAIN_STYLES = ("fluent-emoji-flat", "noto", "twemoji")
REVISION = 1  # of the packages and of their rendering: a library of another is fetched anew


@dataclass(frozen=True, kw_only=True)
class Style:
    """An artwork that sprites come from, and its credits. `licence` is an SPDX identifier."""

    name: str
    author: str
    licence: str
    link: str
    licence_link: str
    package: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SpriteLibrary:
    """N sprites of S x S pixels, each centred and as large as its canvas.

    `pixels_NSS4` is uint8 RGBA, alpha not multiplied in; `noun_N` and `style_N` are indices into
    `nouns` and `styles`.
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
        """Return the name of a sprite's style."""
        return self.styles[self.style_N[number]].name

    def only(self, styles: Collection[str]) -> SpriteLibrary:
        """Return the sprites of some styles, and the nouns that these have.

        Raises:
            ValueError: when there are none.
        """
        kept = [index for index, style in enumerate(self.styles) if style.name in styles]
        chosen_N = np.isin(self.style_N, kept)
        if not chosen_N.any():
            raise ValueError(
                f"no sprite is of {sorted(styles)}: the library has"
                f" {[style.name for style in self.styles]}"
            )
        nouns = np.unique(self.noun_N[chosen_N])
        return SpriteLibrary(
            nouns=tuple(self.nouns[noun] for noun in nouns),
            styles=tuple(self.styles[index] for index in kept),
            noun_N=np.searchsorted(nouns, self.noun_N[chosen_N]),
            style_N=np.searchsorted(kept, self.style_N[chosen_N]),
            pixels_NSS4=self.pixels_NSS4[chosen_N],
        )


def load(path: Path | None = None) -> SpriteLibrary:
    """Load the library of a file, by default the fetched one.

    Raises:
        FileNotFoundError: where there is none, with the command that fetches it.
        ValueError: for a file that is no library.
    """
    path = path or fetched_path()
    if not path.is_file():
        raise FileNotFoundError(
            f"sprites {path}: no such file; fetch them with `wordmask train scenes --fetch`, or"
            " take the shipped ones with `--sprites shipped`"
        )
    try:
        return _read(path)
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"sprites {path}: not a sprite library ({error}); fetch them anew with `wordmask train"
            " scenes --fetch`"
        ) from error


def _read(path: Path) -> SpriteLibrary:
    with np.load(path) as file:
        styles = json.loads(str(file["styles"]))
        return SpriteLibrary(
            nouns=tuple(file["nouns"].tolist()),
            styles=tuple(Style(**style) for style in styles),
            noun_N=file["noun_N"],
            style_N=file["style_N"],
            pixels_NSS4=file["pixels_NSS4"],
        )


def load_shipped() -> SpriteLibrary:
    """Load the small library that comes with the package: 36 nouns, 3 styles."""
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
    """Return the path of the fetched library: it changes with the nouns and their icons."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    contents = repr((REVISION, SIDE, NOUNS, sorted(ICONS.items()), sorted(UNFIT)))
    digest = hashlib.sha256(contents.encode()).hexdigest()
    return cache / "wordmask" / f"sprites-{digest[:12]}.npz"
