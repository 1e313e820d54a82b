"""Image URIs of a table, and where they may lead.

Tables come from strangers, and what they name is read with the credentials of whoever runs. Allowed
are the roots: the folder of the input, or its whole bucket in an object store, and the folders of
`allow_roots`. https:// is allowed by `allow_https` alone, see `tasks/images/https.py`.
"""

from __future__ import annotations

import os

from wordmask.schemas.redaction import redacted
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.storage import S3_SCHEMES

LOCAL_SCHEMES = ("", "file")


class ImageError(ValueError):
    """An image that cannot be used: a reject code, and a detail without credentials."""

    def __init__(self, code: RejectCode, detail: str) -> None:
        detail = redacted(detail)
        super().__init__(detail)
        self.code = code
        self.detail = detail


def resolve(
    uri: str, table_uri: str, settings: SegmentSettings, input_folder: str | None = None
) -> str:
    """Return the full URI of an image, or its real path.

    Args:
        uri: as the table has it. A relative one starts at the folder of the table.
        table_uri: the file of the table.
        settings: the allowed roots.
        input_folder: the folder of the input, by default that of the table.

    Raises:
        ImageError: it leads out of the roots, also through `..` or a symbolic link, or its scheme
            is not allowed.
    """
    if "::" in uri:
        raise _not_allowed(uri, "names one file system inside another with ::")
    scheme = _scheme(uri)
    if scheme == "https" and settings.allow_https:
        return _normal(uri)
    table_folder = table_uri.rsplit("/", 1)[0]
    if scheme == "" and not _is_absolute(uri, table_uri):
        uri = f"{table_folder}/{uri.lstrip('/')}"
    full = _normal(uri)
    if ".." in full.split("/"):
        raise _not_allowed(uri, "climbs with ..")
    roots = [_input_root(input_folder or table_folder), *map(_normal, settings.allow_roots)]
    if any(_is_below(full, root) for root in roots):
        return full
    if scheme in ("http", "https"):
        raise _not_allowed(uri, f"{scheme}:// is not among the allowed schemes")
    raise _not_allowed(uri, f"is not below {' or '.join(roots)}")


def _not_allowed(uri: str, why: str) -> ImageError:
    return ImageError(RejectCode.URI_NOT_ALLOWED, f"{uri}: {why}")


def _is_absolute(path: str, table_uri: str) -> bool:
    """Return whether a path without a scheme is absolute, which it can be beside a local table."""
    return path.startswith("/") and _scheme(table_uri) in LOCAL_SCHEMES


def _is_below(full: str, root: str) -> bool:
    root = root.rstrip("/")
    return full == root or full.startswith(f"{root}/")


def _scheme(uri: str) -> str:
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return ""
    return scheme.lower()


def _input_root(folder: str) -> str:
    """Return the root of the input's own images: its folder, or the bucket it is in.

    The owner of an input can read its bucket anyway.
    """
    normal = _normal(folder)
    if _scheme(folder) in LOCAL_SCHEMES:
        return normal
    return "/".join(normal.split("/", 3)[:3])


def _normal(uri: str) -> str:
    """Return the path that a local path really leads to; of a URI, one name for each scheme."""
    scheme = _scheme(uri)
    rest = uri.split("://", 1)[-1]
    if scheme in LOCAL_SCHEMES:
        try:
            return os.path.realpath(rest)
        except (OSError, ValueError):  # no file can have this name: opening it says so
            return os.path.normpath(rest)
    if scheme in S3_SCHEMES:
        scheme = "s3"
    return f"{scheme}://{rest}"
