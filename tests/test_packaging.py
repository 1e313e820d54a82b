"""What is built for others to install, and that it lives beside a project's own folders."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.folders import PACKAGES, ROOT

BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Build the wheel or source archive of a tree into a folder, as pip does."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(folder)]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    return folder / done.stdout.splitlines()[-1]


def read_wheel(path: Path) -> dict[str, bytes]:
    """Return the contents of a wheel by name, without those that describe the wheel itself."""
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("wordmask/")]
        assert {name.split("/")[0].partition("-")[0] for name in wheel.namelist()} == {"wordmask"}
        return {name: wheel.read(name) for name in names}


def files_of_packages() -> dict[str, bytes]:
    """Return the contents of the four packages by the name that a wheel gives them."""
    found = {"wordmask/__init__.py": ROOT / "wordmask/__init__.py"}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[f"wordmask/{path.relative_to(ROOT).as_posix()}"] = path
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    assert read_wheel(wheel) == files_of_packages()


def test_a_wheel_built_from_the_source_archive_is_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path)) as archive:
        assert all(member.isfile() for member in archive), "links would lead out of the archive"
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    assert read_wheel(build("wheel", tree, tmp_path / "again")) == read_wheel(wheel)


def test_it_imports_in_a_project_that_has_folders_of_the_same_names(
    wheel: Path, tmp_path: Path
) -> None:
    site, project = tmp_path / "site", tmp_path / "project"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, *install, str(wheel)], check=True, capture_output=True)
    for package in PACKAGES:
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text("raise ImportError('not this one')")
    code = f"""
import sys; sys.path[:0] = [{str(project)!r}, {str(site)!r}]
import wordmask
from wordmask import Query, Segmentation, Segmenter
import wordmask.flows.segment
from wordmask.model.hub.cards import list_models
print(wordmask.__file__, Segmenter.__module__, list_models()[0].name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = [str(site / "wordmask/__init__.py"), "wordmask.model.segmenter", "demo"]
    assert done.stdout.split() == expected


def test_another_name_is_no_attribute_of_the_package() -> None:
    import wordmask

    with pytest.raises(AttributeError, match="'wordmask' has no attribute 'Segmentor'"):
        _ = wordmask.Segmentor
