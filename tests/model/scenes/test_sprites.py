"""Sprites: the shipped library, damaged files, and fetching with a script in npm's place."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import stat
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from wordmask.model.scenes import sprite_sources
from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.nouns import ALIKE, ICONS, NOUNS, PLURALS, UNFIT, alike, icon_name
from wordmask.model.scenes.shapes import COLOURS, SHAPES
from wordmask.model.scenes.sprite_sources import (
    PACKAGES,
    SHIPPED_NOUNS,
    SHIPPED_STYLES,
    Package,
    fetch,
    render,
)
from wordmask.model.scenes.sprites import (
    HELD_OUT_STYLE,
    SHIPPED,
    TRAIN_STYLES,
    SpriteLibrary,
    fetched_path,
    load,
    load_shipped,
    save,
)

INFO = {"author": {"name": "Nobody", "url": "a link"}, "license": {"spdx": "MIT", "url": "another"}}
# 8 x 4, and something outside of the frame
SQUARE = '<path fill="#ff0000" d="M4 4h8v4h-8z"/><path d="M-20 0h10v10h-10z"/>'
RING = '<circle cx="8" cy="8" r="6" fill="none" stroke="#00f" stroke-width="3"/>'
ICONS_JSON = {
    "prefix": "toy",
    "width": 16,
    "height": 16,
    "icons": {"dog": {"body": SQUARE}, "doughnut": {"body": RING}},
    "aliases": {"red-apple": {"parent": "dog"}},
}


def archive(icons: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, value in (("icons.json", icons), ("info.json", INFO)):
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def package_of(data: bytes, name: str = "@toys/toy") -> Package:
    return Package(
        name=name, version="1.0.0", sha512=base64.b64encode(hashlib.sha512(data).digest()).decode()
    )


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive that an `npm pack` on the PATH, alone there, gives whatever it is asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    served = tmp_path / "served.tgz"
    served.write_bytes(archive(ICONS_JSON))
    script = folder / "npm"
    words = (
        "import shutil, sys\nassert sys.argv[1] == 'pack'\nfolder ="
        " sys.argv[sys.argv.index('--pack-destination') + 1]\n"
    )
    script.write_text(
        f"#!{sys.executable}\n{words}shutil.copy({str(served)!r}, folder + '/toy.tgz')\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return served


def test_nouns_are_many_plain_words_that_are_neither_shapes_nor_colours() -> None:
    assert len(NOUNS) >= 150
    assert list(NOUNS) == sorted(set(NOUNS))
    assert all(
        1 <= len(noun.split()) <= 2 and noun.replace(" ", "").isalpha() and noun.islower()
        for noun in NOUNS
    )
    assert not {*NOUNS} & {*SHAPES, *COLOURS, *COLOUR_NAMES, "object", "thing"}
    assert {*ICONS} | PLURALS | {noun for noun, _ in UNFIT} <= {*NOUNS}
    assert {name for pair in ALIKE for name in pair} <= {*NOUNS, *SHAPES}
    assert alike("car", "taxi")
    assert alike("taxi", "car")
    assert not alike("car", "dog")
    assert icon_name("hot dog") == "hot-dog"


def test_the_shipped_library_is_small_and_whole() -> None:
    library = load_shipped()
    assert SHIPPED.stat().st_size < 10**6
    assert library.nouns == SHIPPED_NOUNS
    assert {style.name for style in library.styles} == {*SHIPPED_STYLES}
    assert HELD_OUT_STYLE in SHIPPED_STYLES
    assert library.pixels_NSS4.dtype == np.uint8
    assert library.pixels_NSS4.shape == (36 * 3, 64, 64, 4)
    assert all(
        len({library.style_of(number) for number in numbers}) == 3
        for numbers in library.numbers_of.values()
    )


def test_sprites_are_centred_and_fill_their_canvas() -> None:
    for pixels in load_shipped().pixels_NSS4:
        x, y, w, h = cv2.boundingRect(pixels[..., 3])
        assert 60 <= max(w, h) <= 64
        assert abs(x + w / 2 - 32) <= 1.5
        assert abs(y + h / 2 - 32) <= 1.5


def test_every_artwork_is_credited() -> None:
    notice = (Path(__file__).parents[3] / "NOTICE").read_text()
    licences = {style.name: style.licence for style in load_shipped().styles}
    assert licences == {"noto": "Apache-2.0", "noto-v1": "Apache-2.0", "twemoji": "CC-BY-4.0"}
    for style in load_shipped().styles:
        name, version = style.package.rsplit("@", 1)
        assert f"{name} {version}" in notice
        assert style.link in notice
        assert style.author.split()[0] in notice
    assert "https://creativecommons.org/licenses/by/4.0/" in notice
    assert "Changes made" in notice


def test_only_some_styles_and_the_nouns_that_they_have() -> None:
    library = load_shipped()
    held = library.only([HELD_OUT_STYLE])
    assert [style.name for style in held.styles] == [HELD_OUT_STYLE]
    assert held.nouns == library.nouns
    train = library.only(TRAIN_STYLES)
    assert [style.name for style in train.styles] == ["noto", "twemoji"]
    for number in range(len(train.noun_N)):
        noun = train.nouns[train.noun_N[number]]
        same = [
            n for n in library.numbers_of[noun] if library.style_of(n) == train.style_of(number)
        ]
        np.testing.assert_array_equal(train.pixels_NSS4[number], library.pixels_NSS4[same[0]])
    with pytest.raises(
        ValueError,
        match=r"no sprite is of \['cubist'\]: the library has \['noto', 'noto-v1', 'twemoji'\]",
    ):
        library.only(["cubist"])


def test_nouns_that_no_style_has_are_left_out(npm: Path) -> None:
    library = render(["dog", "donut", "zebra"], [package_of(npm.read_bytes())], 32)
    assert library.nouns == ("dog", "donut")
    assert library.numbers_of == {"dog": (0,), "donut": (1,)}
    with pytest.raises(RuntimeError, match=r"none of 1 nouns is in \['@toys/toy'\]"):
        render(["zebra"], [package_of(npm.read_bytes())], 32)


def test_a_library_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    library = load_shipped().only(["twemoji"])
    save(library, tmp_path / "new" / "sprites.npz")
    found = load(tmp_path / "new" / "sprites.npz")
    assert (found.nouns, found.styles) == (library.nouns, library.styles)
    for name in ("noun_N", "style_N", "pixels_NSS4"):
        np.testing.assert_array_equal(getattr(found, name), getattr(library, name))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sprites.npz"]


def test_what_fails_in_the_middle_of_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_arrays: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save(load_shipped(), tmp_path / "sprites.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"no such file; fetch them with `wordmask train scenes --fetch`"
    ):
        load()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"text"])
def test_a_damaged_library_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sprites.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sprites\.npz: not a sprite library .*--fetch"):
        load(path)


def test_another_archive_of_numbers_is_no_library(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", nouns=np.array(["dog"]))
    with pytest.raises(ValueError, match="not a sprite library"):
        load(tmp_path / "other.npz")


def test_fetching_keeps_rendered_sprites_in_the_cache(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprite_sources, "PACKAGES", (package_of(npm.read_bytes()),))
    reported: list[tuple[str, int, int]] = []
    path = fetch(on_progress=lambda *step: reported.append(step))
    assert path == fetched_path()
    assert path.is_relative_to(tmp_path / "cache" / "wordmask")
    assert reported == [("toy", 0, 1), ("done", 1, 1)]
    library = load()
    assert library.nouns == ("apple", "dog", "donut")
    (style,) = library.styles
    assert (style.author, style.licence, style.package) == ("Nobody", "MIT", "@toys/toy@1.0.0")


def rendered(name: str, npm: Path) -> np.ndarray:
    library: SpriteLibrary = render([name], [package_of(npm.read_bytes())], 96)
    (pixels,) = library.pixels_NSS4
    return pixels


def test_rendering_crops_to_what_is_in_the_frame(npm: Path) -> None:
    pixels = rendered("dog", npm)
    x, y, w, h = cv2.boundingRect((pixels[..., 3] > 127).astype(np.uint8))
    assert (x, w) == (1, 94)
    assert (y, h) in {(24, 47), (24, 48), (25, 47)}
    assert pixels[..., 3].sum() / 255 == pytest.approx(94 * 47, rel=0.01)
    assert pixels[48, 48].tolist() == [255, 0, 0, 255]


def test_rendering_keeps_holes(npm: Path) -> None:
    pixels = rendered("donut", npm)
    assert pixels[48, 48, 3] == 0
    assert pixels[48, 6].tolist() == [0, 0, 255, 255]


def test_an_archive_that_is_not_the_pinned_one_is_refused(npm: Path) -> None:
    package = package_of(npm.read_bytes())
    npm.write_bytes(npm.read_bytes() + b"more")
    with pytest.raises(RuntimeError, match=r"@toys/toy@1\.0\.0: its sha512 is .*, not the pinned "):
        render(["dog"], [package], 32)


def test_a_failing_npm_is_quoted(npm: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "npm").write_text(
        f"#!{sys.executable}\nimport sys\nsys.exit('no such registry')\n"
    )
    with pytest.raises(RuntimeError, match="npm pack failed: no such registry"):
        render(["dog"], [package_of(npm.read_bytes())], 32)


def test_an_npm_that_leaves_nothing_is_told(npm: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "npm").write_text(f"#!{sys.executable}\n")
    with pytest.raises(RuntimeError, match="npm pack failed: it left no archive"):
        render(["dog"], [package_of(npm.read_bytes())], 32)


def test_without_npm_its_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"needs npm, which is not on the PATH; install Node\.js"
    ):
        render(["dog"], [package_of(b"")], 32)


def test_without_resvg_the_extra_is_named(npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"pip install 'wordmask\[scenes\]'"):
        render(["dog"], [package_of(npm.read_bytes())], 32)


def test_packages_are_pinned() -> None:
    assert {package.style for package in PACKAGES} == {*TRAIN_STYLES, HELD_OUT_STYLE}
    assert all(len(base64.b64decode(package.sha512)) == 64 for package in PACKAGES)
