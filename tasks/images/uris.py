"""Where an image URI of a table may lead. Tables come from strangers: what they name is read with
the credentials of whoever runs.

Allowed are the roots: the folder of the input, or its whole bucket in an object store, and what
`allow_roots` adds. https:// is allowed by `allow_https` alone, see `tasks.https`.
"""

from __future__ import annotations

import os

from wordmask.schemas.redaction import redacted
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.storage import S3_SCHEMES


class ImageError(ValueError):
    """An image that cannot be used: a reject code and what was found, without the signature of a
    presigned URI.
    """

    def __init__(self, code: RejectCode, detail: str) -> None:
        detail = redacted(detail)
        super().__init__(detail)
        self.code = code
        self.detail = detail


def resolve(
    uri: str, table_uri: str, settings: SegmentSettings, input_folder: str | None = None
) -> str:
    """The full URI of an image, or its real path. A relative one starts at the folder of the table;
    `input_folder` is the table's unless told.

    Raises:
        ImageError: it leads out of the roots, through `..` or a symbolic link too, or its scheme is
        not allowed.
    """
    if "::" in uri:
        raise _not_allowed(uri, "names one file system inside another with ::")
    scheme = _scheme(uri)
    if scheme == "https" and settings.allow_https:
        return _normal(uri)
    if scheme == "" and not (uri.startswith("/") and _scheme(table_uri) in ("", "file")):
        uri = f"{table_uri.rsplit('/', 1)[0]}/{uri.lstrip('/')}"
    full = _normal(uri)
    roots = [
        _root(input_folder or table_uri.rsplit("/", 1)[0]),
        *(_normal(root) for root in settings.allow_roots),
    ]
    if ".." in full.split("/"):
        raise _not_allowed(uri, "climbs with ..")
    if not any(
        full == root.rstrip("/") or full.startswith(root.rstrip("/") + "/") for root in roots
    ):
        what = (
            f"{scheme}:// is not among the allowed schemes"
            if scheme in ("http", "https")
            else f"is not below {' or '.join(roots)}"
        )
        raise _not_allowed(uri, what)
    return full


def _not_allowed(uri: str, why: str) -> ImageError:
    return ImageError(RejectCode.URI_NOT_ALLOWED, f"{uri}: {why}")


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0].lower() if "://" in uri else ""


def _root(folder: str) -> str:
    """What the input's own images may lie below: its folder, or its bucket, which is what its owner
    can read anyway.
    """
    scheme = _scheme(folder)
    if scheme in ("", "file"):
        return _normal(folder)
    return "/".join(_normal(folder).split("/", 3)[:3])


def _normal(uri: str) -> str:
    """A local path as what it really leads to; of a URI, one name for each scheme."""
    scheme, rest = _scheme(uri), uri.split("://", 1)[-1]
    if scheme in ("", "file"):
        try:
            return os.path.realpath(rest)
        except (OSError, ValueError):  # no file can have this name: told where it is opened
            return os.path.normpath(rest)
    return f"{'s3' if scheme in S3_SCHEMES else scheme}://{rest}"
