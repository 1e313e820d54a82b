"""The encoded bytes of an image, from its row or from where its URI leads."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError, ParamValidationError  # type: ignore[import-untyped]

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.fetched import Fetched
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.images.uris import ImageError, resolve
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store, fingerprint

# Error codes of S3. A HEAD is answered without a body, so that its code alone says little.
S3_BARE = ("400", "403")
S3_DENIED = ("403", "AccessDenied")
# The object is archived, or encrypted with a key that must come with each request.
S3_SHUT = ("InvalidObjectState", "InvalidRequest")
S3_NO_NAME = ("InvalidBucketName", "InvalidURI", "KeyTooLongError", "InvalidArgument")


def image_bytes(row: Row, shard: Shard, settings: SegmentSettings, client: HttpsClient) -> Fetched:
    """Return a row's encoded image: its own bytes, or those of its URI. Raises as `fetch` does."""
    if row.image_bytes is not None:
        return Fetched(row.image_bytes)
    return fetch(str(row.image_uri), shard.file, settings, client, input_folder=shard.input_folder)


def fetch(
    uri: str,
    table_uri: str,
    settings: SegmentSettings,
    client: HttpsClient,
    *,
    input_folder: str | None = None,
) -> Fetched:
    """Return an image by its URI, see `resolve`.

    Raises:
        ImageError: the URI is not allowed, or the image is not there, not given, or too large. A
            store that cannot be reached is no fault of the row: its own exception goes on.
    """
    full = resolve(uri, table_uri, settings, input_folder)
    if full.startswith("https://"):
        return client.fetch(full, settings.max_image_bytes)
    store = Store.open(full)
    with _row_faults_as_image_errors(uri):
        return _read(store, uri, settings.max_image_bytes)


def image_fingerprint(full: str, client: HttpsClient) -> str | None:
    """Return the fingerprint of an image by its full URI, without its bytes.

    It is None where a web server gives none. Raises as `fetch` does.
    """
    if full.startswith("https://"):
        return client.fingerprint(full)
    with _row_faults_as_image_errors(full):
        return fingerprint(_file_info(Store.open(full), full))


@contextmanager
def _row_faults_as_image_errors(uri: str) -> Generator[None]:
    """Raise errors that are the row's fault as ImageError. The store's go on as they are."""
    try:
        yield
    except ImageError:
        raise
    except (OSError, ValueError, ParamValidationError) as error:
        fault = _row_fault(error, uri)
        if fault is None:
            raise
        raise fault from None


def _read(store: Store, uri: str, limit: int) -> Fetched:
    info = _file_info(store, uri)
    # Asked for before the bytes: an image that changes in between looks changed the next time, too.
    found = fingerprint(info)
    if info["size"] > limit:
        detail = f"{uri}: {info['size']} bytes, more than the limit of {limit}"
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, detail, found)
    return Fetched(store.read_bytes(""), found)


def _file_info(store: Store, uri: str) -> dict[str, Any]:
    info = _info(store)
    if info["type"] != "file":  # a pipe would be waited for, a device read for ever
        raise ImageError(RejectCode.IMAGE_NOT_FOUND, f"{uri}: is a {info['type']}, not a file")
    return info


def _info(store: Store) -> dict[str, Any]:
    """Return type and size of a file.

    Where an S3 store refuses that without a reason, the error of reading the first byte is raised,
    which has one.
    """
    try:
        info: dict[str, Any] = store.fs.info(store.root)
    except OSError as error:
        if _s3_code(error) not in S3_BARE:
            raise
        store.fs.cat_file(store.root, start=0, end=1)
        # The byte came: what was wrong, such as credentials, has been mended since.
        info = store.fs.info(store.root)
    return info


def _row_fault(error: Exception, uri: str) -> ImageError | None:
    """Return why there is no image, or None where the store is at fault, not the row."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return ImageError(RejectCode.IMAGE_NOT_FOUND, f"{uri}: there is no such file")
    code = _s3_code(error)
    if code in S3_SHUT:
        detail = f"{uri}: the store does not give it: {code}: {error}"
        return ImageError(RejectCode.IMAGE_FORBIDDEN, detail)
    if isinstance(error, PermissionError) and code in (None, *S3_DENIED):
        detail = f"{uri}: access is denied, as some stores also say of what is not there"
        return ImageError(RejectCode.IMAGE_FORBIDDEN, detail)
    if _is_impossible_name(error):
        return ImageError(RejectCode.IMAGE_NOT_FOUND, f"{uri!r}: no file can have this name")
    return None


def _is_impossible_name(error: Exception) -> bool:
    """Return whether no file can have the name.

    It may hold a NUL, be too long, name an impossible bucket or key, or lead through links in a
    circle.
    """
    if not isinstance(error, OSError):
        return True
    if error.errno == errno.EINVAL:
        return _s3_code(error) in (None, *S3_NO_NAME)
    return error.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def _s3_code(error: Exception) -> str | None:
    """Return the error code of an S3 store.

    Expired credentials and an impossible key come as the same exception: the code tells them apart.
    """
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return None
    return str(cause.response.get("Error", {}).get("Code"))
