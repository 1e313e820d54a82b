"""The files below a local folder, also behind links that may be followed."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from wordmask.tasks.inputs.kinds import is_table_by_name
from wordmask.tasks.roots import is_below, may_link_to
from wordmask.tasks.storage import Store

HIDDEN_PREFIXES = (".", "_")  # such names are not data, by the convention of Hadoop and Spark
HIDDEN_SUFFIXES = ("._COPYING_", "_$folder$")  # of Hadoop's copies and markers
OUT_OF_ROOTS = "links that lead out of the input; name their folder with --allow-root"
READ_ANYWAY = "links to what is read under its own name"
CIRCLE = "links that lead in a circle"
NOWHERE = "links that lead nowhere"
NO_FILE = "pipes, sockets or devices"


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is skipped, as everyone does.

    A folder of a partition is not, whatever its key begins with.
    """
    if name.endswith(HIDDEN_SUFFIXES) or name.startswith("."):
        return True
    return name.startswith(HIDDEN_PREFIXES) and "=" not in name


@dataclass
class Found:
    """What lies below a folder.

    `files` are regular ones, with what the file system says of them. `left` are those that are not
    read, `bad` those that should be read and cannot be, both with the reason. `hidden` are the
    folders that were skipped.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)


class LocalWalk:
    """Finds the files below paths of an input folder on a disk.

    Links are followed where `may_link_to` allows it, and never twice on one way.
    """

    def __init__(self, source: Store, folder: str, allow_roots: Sequence[str]) -> None:
        self.found = Found()
        self._source = source
        self._folder = folder
        self._allow_roots = allow_roots

    def add_all(self, paths: Sequence[str]) -> None:
        """Add files, and the files below folders, each of which lies in the input by its name."""
        plain = {os.path.realpath(path) for path in paths if not self._is_linked(path)}
        for path in paths:
            if not self._is_linked(path):
                self._add_target(path, os.path.realpath(path), ())
            elif _is_in_one(os.path.realpath(path), plain):
                self.found.left[path] = READ_ANYWAY
            elif self._follows(path, "", ()):
                self._add_target(path, os.path.realpath(path), ())

    def _is_linked(self, path: str) -> bool:
        """Return whether a link lies on the way from the input's folder to a path."""
        inside = path.removeprefix(self._folder)
        return os.path.realpath(path) != os.path.realpath(self._folder) + inside

    def _add(self, path: str, top: str, above: tuple[str, ...]) -> None:
        """Add what lies at a path within a folder, unless it is hidden or a link not followed.

        Args:
            path: of a file or folder.
            top: the real path of the folder that the walk began at.
            above: the real paths of the folders that led here.
        """
        if is_hidden(os.path.basename(path)):
            if os.path.isdir(path):
                self.found.hidden.add(path)
        elif not os.path.islink(path) or self._follows(path, top, above):
            self._add_target(path, top, above)

    def _add_target(self, path: str, top: str, above: tuple[str, ...]) -> None:
        if os.path.isdir(path):
            self._add_folder(path, top, above)
        elif os.path.isfile(path):
            self.found.files[path] = self._source.at(path).info()
        else:
            self.found.left[path] = NO_FILE

    def _add_folder(self, path: str, top: str, above: tuple[str, ...]) -> None:
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            self.found.bad[path] = f"a folder that cannot be listed ({error.strerror})"
            return
        above = (*above, os.path.realpath(path))
        for name in names:
            self._add(f"{path}/{name}", top, above)

    def _follows(self, path: str, top: str, above: tuple[str, ...]) -> bool:
        """Return whether a link is followed, and keep the reason if it is not."""
        target = os.path.realpath(path)
        why = None
        if not may_link_to(path, self._folder, self._allow_roots):
            why = OUT_OF_ROOTS
        elif not os.path.exists(path):
            why = NOWHERE
        elif top and _is_read_anyway(target, top):
            why = READ_ANYWAY
        elif target in above:
            why = CIRCLE
        if why is None:
            return True
        if why is NOWHERE and is_table_by_name(path):
            self.found.bad[path] = (
                f"a link that leads nowhere ({target}): fetch the file, as with `git annex get` or"
                " `dvc pull`"
            )
        else:
            self.found.left[path] = why
        return False


def _is_in_one(path: str, folders: Collection[str]) -> bool:
    """Return whether a path is one of some, or below one of them."""
    above = map(str, PurePosixPath(path).parents)
    return path in folders or any(folder in folders for folder in above)


def _is_read_anyway(target: str, top: str) -> bool:
    """Return whether the walk from `top` finds a real path by its own name."""
    if not is_below(target, top):
        return False
    inside = target.removeprefix(top).strip("/").split("/")
    return not any(is_hidden(name) for name in inside)
