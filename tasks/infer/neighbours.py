"""Tell one image that its store does not give from a store that gives none.

Errors look alike: a bad sector, a disabled key of one object and a broken mount are all OSError(5).
So other images of the same store are read: if one comes, the image is at fault, and its rows are
rejected; otherwise the store is, and the shard ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.uris import ImageError, resolve
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import BROKEN_REPLY, STORE_ERRORS, Store
from wordmask.tasks.telemetry.logs import clean

T = TypeVar("T")

NEIGHBOURS = 8  # other images that are read, at most
# The process or the network lacks something, whichever file it wants.
EXHAUSTED = (
    errno.EAGAIN,
    errno.EDQUOT,
    errno.EINTR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
)
# What S3 says of any object while it is busy, beside the statuses of HTTP.
BUSY_CODES = ("SlowDown", "RequestLimitExceeded", "RequestTimeout", "Throttling")
BUSY_STATUSES = (408, 429)


class ImageReader(Generic[T]):
    """Reads the images of a shard's rows, and rejects one that its store alone does not give.

    Args:
        images: for each distinct image, a row of it.
        shard: the shard of the rows.
        settings: where images may lie.
        read: returns what is read of a row's image.
    """

    def __init__(
        self,
        images: Sequence[Row],
        shard: Shard,
        settings: SegmentSettings,
        read: Callable[[Row], T],
    ) -> None:
        self._images = images
        self._shard = shard
        self._settings = settings
        self._read_once = read

    def read(self, row: Row) -> T:
        """Return what is read of a row's image.

        Raises:
            ImageError: the image cannot be had, while others of its store can.
            OSError: the store is at fault.
        """
        try:
            return self._read_once(row)
        except STORE_ERRORS as error:
            if not _may_concern_one_image(error) or not self._store_gives_others(row):
                raise
        # The store works. So this may have passed, too.
        try:
            return self._read_once(row)
        except STORE_ERRORS as error:
            if not _may_concern_one_image(error):
                raise
            reason = clean(f"{type(error).__name__}: {error}", [row.query])
            detail = f"{row.image_uri}: the store gives other images, but not this one: {reason}"
            raise ImageError(RejectCode.IMAGE_UNREACHABLE, detail) from None

    def _store_gives_others(self, row: Row) -> bool:
        """Return whether another image of the same store can be read, or its table if it has none.

        Where every image fails, a table that can be read proves little: it may be in a cache, or
        encrypted with another key.
        """
        place = self._place(row)
        if place is None:
            return False
        others = [other for other in self._images if other.image_uri != row.image_uri]
        neighbours = [other for other in others if self._place(other) == place]
        if neighbours:
            return any(self._can_read(other) for other in _spread(neighbours, NEIGHBOURS))
        return place == _place(self._shard.file) and _has_first_byte(self._shard.file)

    def _can_read(self, row: Row) -> bool:
        try:
            self._read_once(row)
        except (ImageError, *STORE_ERRORS):
            return False
        return True

    def _place(self, row: Row) -> tuple[str, ...] | None:
        """Return what names the store of a row's image, None where no store has it."""
        if row.image_bytes is not None or row.image_uri is None:
            return None
        try:
            full = resolve(
                row.image_uri, self._shard.file, self._settings, self._shard.input_folder
            )
        except ImageError:
            return None
        return _place(full)


def _may_concern_one_image(error: Exception) -> bool:
    """Return whether an error may be about one file, rather than about all of the store."""
    if not isinstance(error, OSError) or isinstance(error, BROKEN_REPLY):
        return False
    return error.errno not in EXHAUSTED and not _says_busy(error.__cause__)


def _says_busy(cause: BaseException | None) -> bool:
    """Return whether S3 answered that it cannot answer now."""
    if not isinstance(cause, ClientError):
        return False
    status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(cause.response.get("Error", {}).get("Code"))
    return status in BUSY_STATUSES or status >= 500 or code.startswith(BUSY_CODES)


def _place(uri: str) -> tuple[str, ...] | None:
    """Return the disk or mount of a local path, or the bucket of a URI."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme != "file":
        return scheme, rest.split("/", 1)[0]
    path = rest if separator else uri
    try:
        return "file", str(os.stat(os.path.dirname(path) or ".").st_dev)
    except (OSError, ValueError):
        return None


def _has_first_byte(uri: str) -> bool:
    store = Store.open(uri)
    try:
        store.fs.cat_file(store.root, start=0, end=1)
    except STORE_ERRORS:
        return False
    return True


def _spread(rows: Sequence[Row], count: int) -> Iterator[Row]:
    """Yield `count` rows from all over the sequence, or all if there are not so many."""
    step = max(1, len(rows) // count)
    yield from rows[::step][:count]
