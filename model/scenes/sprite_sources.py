"""Where sprites come from: four icon sets out of npm packages, pinned by version and checksum,
rendered here once.

Packages are fetched by `npm pack`, so the registry is whichever the user's npm is set to. To make
the shipped library anew:

    python -m wordmask.model.scenes.sprite_sources --dest model/scenes/assets/sprites.npz
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wordmask.model.scenes.nouns import NOUNS, UNFIT, icon_name
from wordmask.model.scenes.sprites import SIDE, SpriteLibrary, Style, fetched_path, save

NPM_SECONDS = 600  # before a download is given up
EDGE = 1  # pixels left clear around a sprite, for its smooth border
SHIPPED_SIDE = 64  # pixels
SHIPPED_STYLES = ("noto", "noto-v1", "twemoji")
SHIPPED_NOUNS = (
    "airplane", "apple", "banana", "bee", "bicycle", "book", "bus", "butterfly", "camera", "car",
    "carrot", "castle", "cat", "crab", "dog", "duck", "elephant", "fish", "guitar", "hammer",
    "horse", "house", "key", "lemon", "monkey", "octopus", "penguin", "pig", "pizza", "rocket",
    "scissors", "shirt", "snail", "tree", "turtle", "umbrella",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package with an icon set, and the sha512 of its archive, in base64 as npm writes
    it.
    """

    name: str
    version: str
    sha512: str

    @property
    def style(self) -> str:
        return self.name.split("/")[-1]


PACKAGES = (
    Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    Package(
        name="@iconify-json/noto",
        version="1.2.9",
        sha512="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    Package(
        name="@iconify-json/noto-v1",
        version="1.2.5",
        sha512="/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    Package(
        name="@iconify-json/twemoji",
        version="1.2.5",
        sha512="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
)
Tell = Callable[[str, int, int], object]  # what is going on, how much of it is done, of how much


def fetch(*, dest: Path | None = None, tell: Tell | None = None) -> Path:
    """Fetch and render every sprite, and keep them in the cache folder, or at `dest`; where they
    are.

    RuntimeError where npm is missing or fails, or an archive is not the one that was pinned;
    ImportError without resvg.
    """
    dest = dest or fetched_path()
    save(render(NOUNS, PACKAGES, SIDE, tell), dest)
    return dest


def render(
    nouns: Sequence[str], packages: Sequence[Package], side: int, tell: Tell | None = None
) -> SpriteLibrary:
    """The library of some nouns in some packages' styles. RuntimeError where these have none of
    them.
    """
    drawer = _resvg()
    styles, found = [], []
    for place, package in enumerate(packages):
        if tell is not None:
            tell(package.style, place, len(packages))
        icons, info = _read(package)
        styles.append(_style(package, info))
        for number, noun in enumerate(nouns):
            icon = None if (noun, package.style) in UNFIT else _icon(icons, icon_name(noun))
            if icon is not None:
                found.append((number, place, draw_icon(drawer, icon, side)))
    if tell is not None:
        tell("done", len(packages), len(packages))
    if not found:
        raise RuntimeError(
            f"none of {len(nouns)} nouns is in {[package.name for package in packages]}: are these"
            " icon sets?"
        )
    noun_N, style_N, pixels = zip(*found, strict=True)
    library = SpriteLibrary(
        nouns=tuple(nouns),
        styles=tuple(styles),
        noun_N=np.array(noun_N),
        style_N=np.array(style_N),
        pixels_NSS4=np.stack(pixels),
    )
    return library.only([style.name for style in styles])  # without the nouns that no style has


def _resvg() -> Callable[..., Any]:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            "rendering sprites needs resvg: pip install 'wordmask[scenes]'"
        ) from error
    return svg_to_bytes


def _read(package: Package) -> tuple[dict[str, Any], dict[str, Any]]:
    """icons.json and info.json of a package, out of an archive that is the one pinned."""
    with tempfile.TemporaryDirectory() as folder:
        archive = _pack(package, Path(folder))
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if digest != package.sha512:
        raise RuntimeError(
            f"{package.name}@{package.version}: its sha512 is {digest}, not the pinned"
            f" {package.sha512}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return _member(tar, "icons.json"), _member(tar, "info.json")


def _pack(package: Package, folder: Path) -> bytes:
    """The archive of a package, by npm."""
    spec = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"{spec}: fetching it needs npm, which is not on the PATH; install Node.js"
        )
    command = [npm, "pack", spec, "--pack-destination", str(folder), "--ignore-scripts"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{spec}: npm took longer than {NPM_SECONDS} seconds; is its registry within reach?"
        ) from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise RuntimeError(
            f"{spec}: npm pack failed: {done.stderr.strip()[-500:] or 'it left no archive'}"
        )
    return archives[0].read_bytes()


def _member(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    handle = tar.extractfile(f"package/{name}")
    if handle is None:
        raise RuntimeError(f"package/{name} is no file of its archive")
    value: dict[str, Any] = json.load(handle)
    return value


def _style(package: Package, info: dict[str, Any]) -> Style:
    return Style(
        name=package.style,
        author=info["author"]["name"],
        licence=info["license"]["spdx"],
        link=info["author"]["url"],
        licence_link=info["license"]["url"],
        package=f"{package.name}@{package.version}",
    )


def _icon(icons: dict[str, Any], name: str) -> dict[str, Any] | None:
    """An icon's drawing with its frame (left, top, width, height), or None where the set has none
    of that name.
    """
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    frame = {
        "left": 0,
        "top": 0,
        "width": icons.get("width", 16),
        "height": icons.get("height", 16),
    }
    return frame | icon


def draw_icon(drawer: Callable[..., Any], icon: dict[str, Any], side: int) -> np.ndarray:
    """An icon as a sprite: uint8 (side, side, 4) RGBA, centred, filling the canvas but for a clear
    edge along its longer side.
    """
    whole = max(icon["width"], icon["height"])
    x, y = icon["left"] + (icon["width"] - whole) / 2, icon["top"] + (icon["height"] - whole) / 2
    first = _raster(drawer, icon, (x, y, whole), side)
    left, top, width, height = cv2.boundingRect(first[..., 3])
    scale = whole / side
    span = max(width, height) * side / (side - 2 * EDGE)
    corner = x + scale * (left + (width - span) / 2), y + scale * (top + (height - span) / 2)
    return _raster(drawer, icon, (*corner, scale * span), side)


def _raster(
    drawer: Callable[..., Any], icon: dict[str, Any], view: tuple[float, float, float], side: int
) -> np.ndarray:
    """What a square view (left, top, side) shows of an icon. The inner svg clips what is drawn
    outside of the icon's own frame.
    """
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    left, top, width, height = (icon[name] for name in ("left", "top", "width", "height"))
    place = (
        f'x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{left} {top} {width}'
        f' {height}"'
    )
    x, y, span = view
    svg = (
        f'<svg {namespaces} width="{side}" height="{side}" viewBox="{x} {y} {span} {span}"><svg'
        f" {place}>{icon['body']}</svg></svg>"
    )
    png = drawer(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    pixels = cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)


def main() -> None:
    """Make the shipped library anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dest", type=Path, required=True)
    dest = parser.parse_args().dest
    packages = [package for package in PACKAGES if package.style in SHIPPED_STYLES]
    save(
        render(
            SHIPPED_NOUNS,
            packages,
            SHIPPED_SIDE,
            lambda what, done, of: print(f"{done}/{of} {what}"),
        ),
        dest,
    )
    print(f"wrote {dest}, {dest.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
