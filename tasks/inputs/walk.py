"""The files below a local folder, also behind links that may be followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence, Set
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

    def add_all(self, paths: Iterable[str]) -> None:
        """Add files, and the files below folders, each of which lies in the input by its name."""
        linked = {path: self._is_linked(path) for path in paths}
        plain = [path for path in linked if not linked[path]]
        tops = frozenset(map(os.path.realpath, plain))
        for path in plain:
            self._add_target(path, tops, ())
        for path in filter(linked.get, linked):
            if self._follows(path, tops, ()):
                self._add_target(path, tops | {os.path.realpath(path)}, ())

    def add_unlisted(self, error: OSError) -> None:
        """Add a folder that cannot be listed, as the error says."""
        self.found.bad[error.filename] = f"a folder that cannot be listed ({error.strerror})"

    def may_follow(self, path: str) -> bool:
        """Return whether a link leads to where it may lead."""
        return may_link_to(path, self._folder, self._allow_roots)

    def _is_linked(self, path: str) -> bool:
        """Return whether a link lies on the way from the input's folder to a path."""
        inside = path.removeprefix(self._folder)
        return os.path.realpath(path) != os.path.realpath(self._folder) + inside

    def _add(self, path: str, tops: Set[str], above: tuple[str, ...]) -> None:
        """Add what lies at a path within a folder, unless it is hidden or a link not followed.

        Args:
            path: of a file or folder.
            tops: the real paths that walks begin at.
            above: the real paths of the folders that led here.
        """
        if is_hidden(os.path.basename(path)):
            if os.path.isdir(path):
                self.found.hidden.add(path)
        elif not os.path.islink(path) or self._follows(path, tops, above):
            self._add_target(path, tops, above)

    def _add_target(self, path: str, tops: Set[str], above: tuple[str, ...]) -> None:
        if os.path.isdir(path):
            self._add_folder(path, tops, above)
        elif os.path.isfile(path):
            self.found.files[path] = self._source.at(path).info()
        else:
            self.found.left[path] = NO_FILE

    def _add_folder(self, path: str, tops: Set[str], above: tuple[str, ...]) -> None:
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            self.add_unlisted(error)
            return
        above = (*above, os.path.realpath(path))
        for name in names:
            self._add(f"{path}/{name}", tops, above)

    def _follows(self, path: str, tops: Set[str], above: tuple[str, ...]) -> bool:
        """Return whether a link is followed, and keep the reason if it is not."""
        target = os.path.realpath(path)
        why = None
        if not self.may_follow(path):
            why = OUT_OF_ROOTS
        elif not os.path.exists(path):
            why = NOWHERE
        elif _is_read_anyway(target, tops):
            why = READ_ANYWAY
        elif any(is_below(folder, target) for folder in above):
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


def _is_read_anyway(target: str, tops: Set[str]) -> bool:
    """Return whether a walk from one of some real paths finds another one by its own name."""
    path = PurePosixPath(target)
    return any(
        str(top) in tops and not any(map(is_hidden, path.relative_to(top).parts))
        for top in (path, *path.parents)
    )
