"""Sources of sprites: four icon sets from npm packages, pinned by version and checksum.

`npm pack` fetches the packages from the registry that the user's npm is set to, and they are
rendered once. To make the shipped library anew:

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

from wordmask.model.scenes.nouns import NOUNS, UNFIT, icon_name, split_words
from wordmask.model.scenes.sprites import SIDE, SpriteLibrary, Style, fetched_path, save

NPM_SECONDS = 600  # before a download is given up
EDGE = 1  # pixels left clear around a sprite, for its smooth border
SHIPPED_SIDE = 64  # pixels
SHIPPED_STYLES = ("noto", "noto-v1", "twemoji")
SHIPPED_NOUNS = split_words("""
    airplane, apple, banana, bee, bicycle, book, bus, butterfly, camera, car, carrot, castle, cat,
    crab, dog, duck, elephant, fish, guitar, hammer, horse, house, key, lemon, monkey, octopus,
    penguin, pig, pizza, rocket, scissors, shirt, snail, tree, turtle, umbrella
""")


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package with an icon set. `sha512` is its archive's, in base64 as npm writes it."""

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
OnProgress = Callable[[str, int, int], object]  # the style at work, how many are done, of how many
Rasterizer = Callable[..., Any]


def ignore_progress(style: str, done: int, total: int) -> None:
    """Report to nobody."""


def fetch(*, dest: Path | None = None, on_progress: OnProgress = ignore_progress) -> Path:
    """Fetch and render every sprite, and keep them at `dest`, by default in the cache folder.

    Returns: the path of the library.

    Raises:
        RuntimeError: where npm is missing or fails, or an archive is not the pinned one.
        ImportError: without resvg.
    """
    dest = dest or fetched_path()
    save(render(NOUNS, PACKAGES, SIDE, on_progress), dest)
    return dest


def render(
    nouns: Sequence[str],
    packages: Sequence[Package],
    side: int,
    on_progress: OnProgress = ignore_progress,
) -> SpriteLibrary:
    """Render the library of some nouns in some packages' styles.

    Raises:
        RuntimeError: where the packages have none of the nouns.
    """
    rasterizer = _resvg()
    styles: list[Style] = []
    noun_N: list[int] = []
    style_N: list[int] = []
    sprites: list[np.ndarray] = []
    for index, package in enumerate(packages):
        on_progress(package.style, index, len(packages))
        icons, info = _read(package)
        styles.append(_style(package, info))
        for number, noun in enumerate(nouns):
            icon = _icon(icons, icon_name(noun))
            if icon is not None and (noun, package.style) not in UNFIT:
                noun_N.append(number)
                style_N.append(index)
                sprites.append(draw_icon(rasterizer, icon, side))
    on_progress("done", len(packages), len(packages))
    if not sprites:
        raise RuntimeError(
            f"none of {len(nouns)} nouns is in {[package.name for package in packages]}: are these"
            " icon sets?"
        )
    library = SpriteLibrary(
        nouns=tuple(nouns),
        styles=tuple(styles),
        noun_N=np.array(noun_N),
        style_N=np.array(style_N),
        pixels_NSS4=np.stack(sprites),
    )
    return library.only([style.name for style in styles])  # without the nouns that no style has


def _resvg() -> Rasterizer:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            "rendering sprites needs resvg: pip install 'wordmask[scenes]'"
        ) from error
    return svg_to_bytes


def _read(package: Package) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return icons.json and info.json of a package, after checking its archive."""
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
    """Return the archive of a package, fetched by npm."""
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
    """Return an icon's drawing with its frame (left, top, width, height); None without one."""
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


def draw_icon(rasterizer: Rasterizer, icon: dict[str, Any], side: int) -> np.ndarray:
    """Draw an icon as a sprite, uint8 (side, side, 4) RGBA.

    It is centred, and fills the canvas but for a clear edge along its longer side.
    """
    whole = max(icon["width"], icon["height"])
    x = icon["left"] + (icon["width"] - whole) / 2
    y = icon["top"] + (icon["height"] - whole) / 2
    first = _rasterize(rasterizer, icon, (x, y, whole), side)
    left, top, width, height = cv2.boundingRect(first[..., 3])
    scale = whole / side
    span = max(width, height) * side / (side - 2 * EDGE)
    close_x = x + scale * (left + (width - span) / 2)
    close_y = y + scale * (top + (height - span) / 2)
    return _rasterize(rasterizer, icon, (close_x, close_y, scale * span), side)


def _rasterize(
    rasterizer: Rasterizer, icon: dict[str, Any], view: tuple[float, float, float], side: int
) -> np.ndarray:
    """Draw what a square view (left, top, side) shows of an icon."""
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    left, top, width, height = (icon[name] for name in ("left", "top", "width", "height"))
    frame = f'x="{left}" y="{top}" width="{width}" height="{height}"'
    frame_view = f'viewBox="{left} {top} {width} {height}"'
    x, y, span = view
    # The inner svg clips what is drawn outside of the icon's own frame.
    svg = (
        f'<svg {namespaces} width="{side}" height="{side}" viewBox="{x} {y} {span} {span}">'
        f"<svg {frame} {frame_view}>{icon['body']}</svg></svg>"
    )
    png = rasterizer(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    data = np.frombuffer(bytes(png), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert pixels is not None, "resvg writes PNG"
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)


def main() -> None:
    """Make the shipped library anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dest", type=Path, required=True)
    dest = parser.parse_args().dest
    packages = [package for package in PACKAGES if package.style in SHIPPED_STYLES]

    def report(style: str, done: int, total: int) -> None:
        print(f"{done}/{total} {style}")

    save(render(SHIPPED_NOUNS, packages, SHIPPED_SIDE, report), dest)
    print(f"wrote {dest}, {dest.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
