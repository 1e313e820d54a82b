"""The files of an input: which of them are tables, and which are left out and why."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any, NamedTuple

from wordmask.schemas.losses import LeftOut
from wordmask.tasks.inputs.kinds import is_table_by_name, why_no_table_by_name, why_not_parquet
from wordmask.tasks.inputs.patterns import matches_at_any_depth
from wordmask.tasks.inputs.walk import Found, LocalWalk, is_hidden
from wordmask.tasks.output.catalog import is_own_file
from wordmask.tasks.storage import Store, retry_reads

FILES_AT_ONCE = 16
NAMES_SHOWN = 3
NOT_UTF8 = "named in other letters than UTF-8: rename it"

Entry = tuple[str, dict[str, Any]]  # a path, and what the store says of the file


class Listing(NamedTuple):
    """The files of an input by path. Names are relative to `base`.

    `tables` are Parquet by their names, or by their first and last bytes. `bad` should be read and
    cannot be, and `left` are not read, both with the reason. `hidden` are folders that were
    skipped.
    """

    base: str
    tables: list[Entry]
    bad: dict[str, str]
    left: dict[str, str]
    hidden: set[str]
    is_pattern: bool = False

    def name(self, path: str) -> str:
        """Return the name of a file of the input, in which bytes that are not UTF-8 are escaped."""
        return printable(path.removeprefix(self.base).lstrip("/"))

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return what is left out, by reason."""
        names: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.left):
            names[self.left[path]].append(self.name(path))
        return tuple(
            LeftOut(why=why, files=len(of_it), names=tuple(of_it[:NAMES_SHOWN]))
            for why, of_it in sorted(names.items())
        )


def list_input(source: Store, output: Store, allow_roots: Sequence[str]) -> Listing:
    """Return the files of an input: of a file, a folder with those below it, or a glob.

    A path that exists under its very name is no pattern. A file that is named by itself is a table,
    whatever it is called.

    Args:
        source: the store of the input.
        output: the store of the output, which may lie in the input: its files are left out.
        allow_roots: roots below which links may lead, besides the input.
    """
    if source.fs.isfile(source.root):
        folder = source.root.rsplit("/", 1)[0]
        return Listing(folder, [(source.root, source.info())], {}, {}, set())
    base = source.root
    is_pattern = _is_pattern(source)
    if is_pattern:
        base = _fixed_part(source.root)
    found = retry_reads(lambda: _find(source, base, allow_roots))
    if output.fs == source.fs:
        _leave_own_files(found, output)
    kinds = _kinds(source, found.files)
    tables = sorted(item for item in found.files.items() if kinds[item[0]] is None)
    left = found.left | {path: why for path, why in kinds.items() if why is not None}
    unnamed = {path: NOT_UTF8 for path, _ in tables if printable(path) != path}
    tables = [entry for entry in tables if entry[0] not in unnamed]
    return Listing(base, tables, found.bad | unnamed, left, found.hidden, is_pattern)


def printable(path: str) -> str:
    """Return a path as text that every record can hold."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_pattern(source: Store) -> bool:
    return glob.has_magic(source.root) and not source.fs.isdir(source.root)


def _fixed_part(pattern: str) -> str:
    """Return the folder of a pattern that is above all that it matches."""
    fixed = takewhile(lambda part: not glob.has_magic(part), pattern.split("/"))
    return "/".join(fixed)


def _find(source: Store, base: str, allow_roots: Sequence[str]) -> Found:
    if source.is_local:
        return _find_local(source, base, allow_roots)
    return _find_remote(source, base)


def _find_local(source: Store, base: str, allow_roots: Sequence[str]) -> Found:
    base = base or "/"
    walk = LocalWalk(source, base, allow_roots)
    pattern = source.root
    if _is_pattern(source) and "**" in pattern:
        walk.add_all(matches_at_any_depth(pattern, base, walk))
    elif _is_pattern(source):
        walk.add_all(path for path in sorted(glob.glob(pattern)) if not _has_hidden(path, base))
    elif os.path.isdir(base):
        walk.add_all([base])
    return walk.found


def _find_remote(source: Store, base: str) -> Found:
    """Return the files of a store that has no links."""
    fs = source.fs
    if not _is_pattern(source):
        return _found_among(fs.find(base, detail=True), base)
    entries: dict[str, dict[str, Any]] = {}
    for path, info in fs.glob(source.root, detail=True).items():
        if info["type"] == "directory":
            entries |= fs.find(path, detail=True)
        else:
            entries[path] = info
    return _found_among(entries, base)


def _found_among(entries: dict[str, dict[str, Any]], base: str) -> Found:
    found = Found()
    for path, info in entries.items():
        hidden = _hidden_part(path, base)
        if hidden is not None:
            found.hidden.add(hidden)
        elif info["type"] == "file":
            found.files[path] = info
    return found


def _has_hidden(path: str, base: str) -> bool:
    return _hidden_part(path, base) is not None


def _hidden_part(path: str, base: str) -> str | None:
    """Return the outermost hidden file or folder on the way to a path, None where there is none."""
    here = base
    for name in path.removeprefix(base).strip("/").split("/"):
        here = f"{here}/{name}"
        if is_hidden(name):
            return here
    return None


def _leave_own_files(found: Found, output: Store) -> None:
    """Forget the files that runs wrote to the output."""
    folder = f"{output.root}/"
    own = [path for path in found.files if path.startswith(folder)]
    for path in own:
        if is_own_file(path.removeprefix(folder)):
            del found.files[path]


def _kinds(source: Store, files: Mapping[str, dict[str, Any]]) -> dict[str, str | None]:
    """Return why each file is no table, None for those that are. Unknown ones are opened to see."""

    def why_no_table(path: str) -> str | None:
        if is_table_by_name(path):
            return None
        by_name = why_no_table_by_name(path)
        if by_name is not None:
            return by_name
        return _why_not_opened(source.at(path), int(files[path]["size"]))

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return dict(zip(files, pool.map(why_no_table, files), strict=True))


def _why_not_opened(store: Store, size: int) -> str | None:
    try:
        return why_not_parquet(store, size)
    except PermissionError:
        return "files that may not be read"
