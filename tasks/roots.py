"""Where names that stand in data may lead: the one list of allowed roots.

Tables, folders and COCO files come from strangers, and what they name is read with the credentials
of whoever runs. Allowed are the folder of the input, or its whole bucket in an object store, and
the folders of `allow_roots`. Links may also lead to where a data set's own tool keeps its files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from wordmask.tasks.storage import S3_SCHEMES

LOCAL_SCHEMES = ("", "file")
# Folders, beside the input or above it, to which the Hugging Face cache, DVC and git-annex link.
LINKED_STORES = ("blobs", ".dvc/cache", ".git/annex/objects")


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI in lower case, "" of a path."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return ""
    return scheme.lower()


def normal(uri: str) -> str:
    """Return the path that a local path really leads to; of a URI, one name for each scheme."""
    scheme = scheme_of(uri)
    rest = uri.split("://", 1)[-1]
    if scheme in LOCAL_SCHEMES:
        try:
            return os.path.realpath(rest)
        except (OSError, ValueError):  # no file can have this name: opening it says so
            return os.path.normpath(rest)
    if scheme in S3_SCHEMES:
        scheme = "s3"
    return f"{scheme}://{rest}"


def allowed_roots(input_folder: str, allow_roots: Sequence[str]) -> list[str]:
    """Return the roots below which names in an input may lead, as `normal` writes them.

    The owner of an input can read its bucket anyway.
    """
    own = normal(input_folder)
    if scheme_of(input_folder) not in LOCAL_SCHEMES:
        own = "/".join(own.split("/", 3)[:3])
    return [own, *map(normal, allow_roots)]


def is_below(full: str, root: str) -> bool:
    """Return whether a path is a root or below it. Both are as `normal` writes them."""
    root = root.rstrip("/")
    return full == root or full.startswith(f"{root}/")


def may_link_to(path: str, input_folder: str, allow_roots: Sequence[str]) -> bool:
    """Return whether a local path within the input may lead to where its links lead.

    Args:
        path: a path, perhaps through links. By name it lies below the folder.
        input_folder: the folder of the input.
        allow_roots: further allowed roots.
    """
    target = normal(path)
    roots = allowed_roots(input_folder, allow_roots)
    return any(is_below(target, root) for root in [*roots, *_linked_stores(input_folder)])


def is_named_below(uri: str, input_folder: str) -> bool:
    """Return whether a local path lies in the folder by its name, wherever its links lead."""
    if scheme_of(uri) not in LOCAL_SCHEMES or scheme_of(input_folder) not in LOCAL_SCHEMES:
        return False
    name = os.path.normpath(uri.split("://", 1)[-1])
    folder = os.path.normpath(input_folder.split("://", 1)[-1])
    return is_below(name, folder)


def _linked_stores(input_folder: str) -> Iterator[str]:
    folder = PurePosixPath(normal(input_folder))
    for above in (folder, *folder.parents):
        for store in LINKED_STORES:
            yield str(above / store)
