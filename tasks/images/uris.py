"""Image URIs of a table, and where they may lead.

The roots are those of `tasks/roots.py`. https:// is allowed by `allow_https` alone, see
`tasks/images/https.py`.
"""

from __future__ import annotations

from wordmask.schemas.redaction import redacted
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.roots import (
    LOCAL_SCHEMES,
    allowed_roots,
    is_below,
    is_named_below,
    may_link_to,
    normal,
    scheme_of,
)


class ImageError(ValueError):
    """An image that cannot be used: a reject code, and a detail without credentials.

    `fingerprint`: of the image, where its store gave that.
    """

    def __init__(self, code: RejectCode, detail: str, fingerprint: str | None = None) -> None:
        detail = redacted(detail)
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.fingerprint = fingerprint


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
    scheme = scheme_of(uri)
    if scheme == "https" and settings.allow_https:
        return normal(uri)
    table_folder = table_uri.rsplit("/", 1)[0]
    if scheme == "" and not _is_absolute(uri, table_uri):
        uri = f"{table_folder}/{uri.lstrip('/')}"
    full = normal(uri)
    if ".." in full.split("/"):
        raise _not_allowed(uri, "climbs with ..")
    folder = input_folder or table_folder
    roots = allowed_roots(folder, settings.allow_roots)
    if any(is_below(full, root) for root in roots):
        return full
    if is_named_below(uri, folder) and may_link_to(full, folder, settings.allow_roots):
        return full
    if scheme in ("http", "https"):
        raise _not_allowed(uri, f"{scheme}:// is not among the allowed schemes")
    raise _not_allowed(uri, f"is not below {' or '.join(roots)}")


def _not_allowed(uri: str, why: str) -> ImageError:
    return ImageError(RejectCode.URI_NOT_ALLOWED, f"{uri}: {why}")


def _is_absolute(path: str, table_uri: str) -> bool:
    """Return whether a path without a scheme is absolute, which it can be beside a local table."""
    return path.startswith("/") and scheme_of(table_uri) in LOCAL_SCHEMES
