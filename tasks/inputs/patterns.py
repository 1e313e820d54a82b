"""What a pattern with ** matches on a disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from fsspec.utils import glob_translate

from wordmask.tasks.inputs.walk import LocalWalk, is_hidden
from wordmask.tasks.roots import normal


def matches_at_any_depth(pattern: str, base: str, walk: LocalWalk) -> Iterator[str]:
    """Yield the outermost files and folders that a pattern matches.

    Python's own glob follows every link, also out of the roots and in circles.

    Args:
        pattern: with ** in it.
        base: the folder above all that it matches.
        walk: says which links may be followed, and gets hidden folders and those without a list.
    """
    matches = re.compile(glob_translate(pattern)).match
    if matches(f"{base}/"):
        yield base
        return
    for folder, folders, files in os.walk(base, onerror=walk.add_unlisted, followlinks=True):
        inside = []
        for name in sorted(folders):
            path = f"{folder.rstrip('/')}/{name}"
            if is_hidden(name):
                walk.found.hidden.add(path)
            elif matches(path):
                yield path
            elif not os.path.islink(path) or (walk.may_follow(path) and not _is_circle(path)):
                inside.append(name)
        folders[:] = inside
        paths = (f"{folder.rstrip('/')}/{name}" for name in sorted(files) if not is_hidden(name))
        yield from filter(matches, paths)


def _is_circle(link: str) -> bool:
    """Return whether a link leads to a folder on the way to it."""
    return normal(link) in {normal(str(folder)) for folder in PurePosixPath(link).parents}
