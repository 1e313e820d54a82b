"""Where tables lie: any fsspec URI, with what S3-compatible stores need.

Writes go to their final name in one put. An object store shows an object whole or not at all; on a
local disk the same is had by writing beside it and renaming.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import urllib3.exceptions
from botocore.exceptions import BotoCoreError, ResponseStreamingError  # type: ignore[import-untyped]
from fsspec import AbstractFileSystem

S3_SCHEMES = ("s3", "s3a")
# A reply that broke off after it had begun; fsspec's own timeout is a TimeoutError.
BROKEN_REPLY = (
    aiohttp.ClientError,
    urllib3.exceptions.HTTPError,
    ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)
STORE_ERRORS = (OSError, BotoCoreError, *BROKEN_REPLY)  # what a store that fails raises
WRITE_ATTEMPTS = 3
# by s3fs. Requests are repeated by botocore, with backoff and jitter, which slows down when told to
BODY_ATTEMPTS = 2
READ_ATTEMPTS = (
    6  # of a reply that breaks off, which neither of them repeats if aiohttp is who says so
)
# seconds before the second, twice as long before each further one, and up to half of it less by
# chance
READ_PAUSE = 0.2
READ_BUFFER = (
    1 << 20
)  # bytes; without it a column of a row group is read whole, however few of its rows are wanted


def storage_options(uri: str) -> dict[str, Any]:
    """Options for the file system of a URI. An S3 endpoint comes from AWS_ENDPOINT_URL; credentials
    as botocore finds them.
    """
    if uri.split("://", 1)[0] not in S3_SCHEMES or "://" not in uri:
        return {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {
        "endpoint_url": endpoint,
        # A cached listing misses what other writers put there since.
        "use_listings_cache": False,
        # Default checksums fail on range reads of some compatible stores.
        "config_kwargs": {
            "s3": {"addressing_style": "path"} if endpoint else {},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "retries": {"max_attempts": 6, "mode": "adaptive"},
        },
    }


Read = TypeVar("Read")


def steadily(read: Callable[[], Read]) -> Read:
    """What `read` gives. If the reply breaks off it is read anew, a bounded number of times with
    pauses.
    """
    for attempt in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except BROKEN_REPLY:
            time.sleep(READ_PAUSE * 2**attempt * random.uniform(0.5, 1))
    return read()


class _SteadyFile(io.RawIOBase):
    """A file of a store, each read of which is done `steadily` and gives all the bytes that were
    asked for and are there.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        start, end = self._file.tell(), self._file.size
        wanted = max(0, end - start if size < 0 else min(size, end - start))

        def read() -> bytes:
            self._file.seek(start)
            try:
                data: bytes = self._file.read(wanted)
            except OSError as error:
                if not is_damaged_parquet(error):
                    raise
                raise OSError(
                    errno.EIO, str(error)
                ) from error  # with a number, as it is the store's and not pyarrow's
            if len(data) < wanted:
                raise ConnectionError(
                    f"{self._file.path}: the store gave {len(data)} of {wanted} bytes"
                )
            return data

        return steadily(read)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class FileInfo(NamedTuple):
    """Of a file; `changed` is of use only to be compared with that of another file of its store."""

    bytes: int
    changed: str


@dataclass(frozen=True)
class Store:
    """A folder of a file system. Paths given to its methods are relative to it."""

    fs: AbstractFileSystem
    root: str
    uri: str  # as it was given, for messages

    @classmethod
    def open(cls, uri: str) -> Store:
        options = storage_options(uri)
        fs, root = fsspec.core.url_to_fs(uri, **options)
        if options:
            fs.retries = BODY_ATTEMPTS
        return cls(fs, root.rstrip("/"), uri)

    def at(self, path: str) -> Store:
        """Return a store of the same file system whose root is `path`."""
        return Store(self.fs, path, self.fs.unstrip_protocol(path))

    @property
    def is_local(self) -> bool:
        return "file" in self.fs.protocol

    def full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def names(self, folder: str, suffix: str) -> set[str]:
        """Names of the files directly in a folder, without the suffix. Empty if there is no such
        folder.
        """
        return {
            _name(path).removesuffix(suffix)
            for path in self._list(folder, detail=False)
            if _is_file(path, suffix)
        }

    def newest(self, folder: str, suffix: str) -> list[str]:
        """The same, those that changed last first."""
        files = [info for info in self._list(folder, detail=True) if _is_file(info["name"], suffix)]
        files.sort(key=lambda info: _changed(info), reverse=True)
        return [_name(info["name"]).removesuffix(suffix) for info in files]

    def _list(self, folder: str, *, detail: bool) -> list[Any]:
        refresh = {} if self.is_local else {"refresh": True}
        try:
            return list(steadily(lambda: self.fs.ls(self.full(folder), detail=detail, **refresh)))
        except FileNotFoundError:
            return []

    def read_bytes(self, path: str) -> bytes:
        data: bytes = steadily(lambda: self.fs.cat_file(self.full(path)))
        return data

    @contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """A file to read in pieces. Nothing is read ahead."""
        with self.fs.open(self.full(path), "rb", cache_type="none") as handle:
            yield handle if self.is_local else _SteadyFile(handle)  # type: ignore[misc]

    @contextmanager
    def parquet(self, path: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file to read in pieces, in bounded memory."""
        with self.reading(path) as handle:
            yield pq.ParquetFile(handle, pre_buffer=False, buffer_size=READ_BUFFER)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Put a whole object. A write that reports an error may have succeeded (a lost reply), so
        the object itself decides. A store that cannot be read either is not asked again."""
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            try:
                self._put(path, data)
                return
            except STORE_ERRORS:
                if self._holds(path, data):
                    return
                if attempt == WRITE_ATTEMPTS:
                    raise

    def remove(self, path: str) -> None:
        """Remove an object. One that is not there is as good as removed."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def files(self, folder: str, suffix: str) -> dict[str, FileInfo]:
        """The files directly in a folder, by their names without the suffix."""
        files = (info for info in self._list(folder, detail=True) if _is_file(info["name"], suffix))
        return {
            _name(info["name"]).removesuffix(suffix): FileInfo(int(info["size"]), _changed(info))
            for info in files
        }

    def check_writable(self) -> None:
        """Write and remove a small file, so that a run is told before its work rather than after
        it. Raises OSError.
        """
        probe = f".writable-{uuid.uuid4().hex}"
        try:
            self._put(probe, b"")
            self.fs.rm_file(self.full(probe))
        except STORE_ERRORS as error:
            raise OSError(
                f"output {self.root}: cannot be written ({error}). Check that it exists and who may"
                " write there"
            ) from error

    def _put(self, path: str, data: bytes) -> None:
        full = self.full(path)
        if not self.is_local:
            self.fs.pipe_file(full, data)
            return
        self.fs.makedirs(os.path.dirname(full), exist_ok=True)
        partial = f"{os.path.dirname(full)}/.{os.path.basename(full)}.{uuid.uuid4().hex}"
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, full)
        except BaseException:
            if os.path.exists(partial):
                os.remove(partial)
            raise

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.read_bytes(path) == data
        except FileNotFoundError:
            return False


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _is_file(path: str, suffix: str) -> bool:
    return path.endswith(suffix) and not _name(path).startswith(".")


def _changed(info: dict[str, Any]) -> str:
    return str(info.get("mtime") or info.get("LastModified") or info.get("last_modified") or "")


def fingerprint(info: dict[str, Any]) -> str:
    """What identifies a file's content without reading it: its etag, else its size and time of
    change.
    """
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    return str(etag).strip('"') if etag else f"{info['size']}-{_changed(info)}"


def is_damaged_parquet(error: Exception) -> bool:
    """Whether the file is at fault, not the store: pyarrow reports a footer or page that it cannot
    parse or decompress as an OSError, too, but as one without a number."""
    is_pyarrows = type(error) is OSError and error.errno is None
    return is_pyarrows or isinstance(error, pa.ArrowInvalid | pa.ArrowNotImplementedError)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
