"""Files of any fsspec URI, with what S3-compatible stores need.

A write is one put to the final name. An object store shows an object whole or not at all; on a
local disk the file is written beside its name and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import urllib3.exceptions
from botocore.exceptions import BotoCoreError, ResponseStreamingError  # type: ignore[import-untyped]
from fsspec import AbstractFileSystem

T = TypeVar("T")

S3_SCHEMES = ("s3", "s3a")
# A reply that broke off after it had begun. fsspec's own timeout is a TimeoutError.
BROKEN_REPLY = (
    aiohttp.ClientError,
    urllib3.exceptions.HTTPError,
    ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)
STORE_ERRORS = (OSError, BotoCoreError, *BROKEN_REPLY)  # what a store that fails raises
WRITE_ATTEMPTS = 3
# By botocore, of each request, with backoff and jitter; slower when a store asks for it.
REQUEST_ATTEMPTS = 6
BODY_ATTEMPTS = 2  # by s3fs
# By `retry_reads`, of a reply that breaks off: the other two do not repeat what aiohttp reports.
READ_ATTEMPTS = 6
# Seconds before the second attempt, twice as long before each further one. Up to half of it is
# left out by chance.
READ_PAUSE = 0.2
# Bytes. Without a buffer a column of a row group is read whole, however few of its rows are wanted.
READ_BUFFER = 1 << 20


def storage_options(uri: str) -> dict[str, Any]:
    """Return the options for the file system of a URI.

    An S3 endpoint comes from AWS_ENDPOINT_URL, and credentials from where botocore finds them.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in S3_SCHEMES:
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
            "retries": {"max_attempts": REQUEST_ATTEMPTS, "mode": "adaptive"},
        },
    }


def retry_reads(read: Callable[[], T]) -> T:
    """Return what `read` returns, and repeat it a few times, with pauses, if a reply breaks off."""
    for attempt in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except BROKEN_REPLY:
            time.sleep(READ_PAUSE * 2**attempt * random.uniform(0.5, 1))
    return read()


class _RetryingFile(io.RawIOBase):
    """A file of a store whose reads are repeated, and return all bytes asked for that exist."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        length = self._file.size - start
        if size >= 0:
            length = min(size, length)
        return retry_reads(lambda: self._read_at(start, max(0, length)))

    def _read_at(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        try:
            data: bytes = self._file.read(length)
        except OSError as error:
            if not is_damaged_parquet(error):
                raise
            # With a number, as it is the store's error and not pyarrow's.
            raise OSError(errno.EIO, str(error)) from error
        if len(data) < length:
            raise ConnectionError(
                f"{self._file.path}: the store gave {len(data)} of {length} bytes"
            )
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class FileInfo(NamedTuple):
    """Size and time of change of a file. The times of one store can be compared as strings."""

    bytes: int
    changed: str


@dataclass(frozen=True)
class Store:
    """A folder of a file system, or a file. Paths given to its methods are relative to it.

    `root` is its path in the file system, `uri` its name for messages.
    """

    fs: AbstractFileSystem
    root: str
    uri: str

    @classmethod
    def open(cls, uri: str) -> Store:
        """Return the store of a URI or local path. Nothing need exist there."""
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
        """Whether it is on a disk of this machine."""
        return "file" in self.fs.protocol

    def full(self, path: str) -> str:
        """Return a path in the file system; "" is the root."""
        if not path:
            return self.root
        return f"{self.root}/{path}"

    def info(self) -> dict[str, Any]:
        """Return what the file system says of the root; of a link, of what it leads to.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = self.root
        if self.is_local:
            path = os.path.realpath(path)
        info: dict[str, Any] = self.fs.info(path)
        return info

    def names(self, folder: str, suffix: str) -> set[str]:
        """Return the names, without the suffix, of the files directly in a folder.

        There are none where there is no such folder.
        """
        paths = self._list(folder, detail=False)
        return {_name(path).removesuffix(suffix) for path in paths if _is_file(path, suffix)}

    def newest(self, folder: str, suffix: str) -> list[str]:
        """Return the names of these files, the one that changed last first."""
        files = self.files(folder, suffix)
        return sorted(files, key=lambda name: files[name].changed, reverse=True)

    def files(self, folder: str, suffix: str) -> dict[str, FileInfo]:
        """Return size and time of change of these files, by name."""
        infos = self._list(folder, detail=True)
        return {
            _name(info["name"]).removesuffix(suffix): FileInfo(int(info["size"]), _changed(info))
            for info in infos
            if _is_file(info["name"], suffix)
        }

    def _list(self, folder: str, *, detail: bool) -> list[Any]:
        options = {"detail": detail}
        if not self.is_local:
            options["refresh"] = True
        try:
            return list(retry_reads(lambda: self.fs.ls(self.full(folder), **options)))
        except FileNotFoundError:
            return []

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        data: bytes = retry_reads(lambda: self.fs.cat_file(self.full(path)))
        return data

    @contextmanager
    def reading(self, path: str) -> Generator[BinaryIO, None, None]:
        """Open a file to read in pieces. Nothing is read ahead."""
        with self.fs.open(self.full(path), "rb", cache_type="none") as handle:
            if self.is_local:
                yield handle
            else:
                yield cast(BinaryIO, _RetryingFile(handle))

    @contextmanager
    def parquet(self, path: str) -> Generator[pq.ParquetFile, None, None]:
        """Open a Parquet file to read in pieces, in bounded memory."""
        with self.reading(path) as handle:
            yield pq.ParquetFile(handle, pre_buffer=False, buffer_size=READ_BUFFER)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a whole file.

        A write that reports an error may have succeeded, if only the reply was lost: the content of
        the file decides. A store that cannot be read either is not tried again.
        """
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            try:
                self._put(path, data)
                return
            except STORE_ERRORS:
                if self._has(path, data):
                    return
                if attempt == WRITE_ATTEMPTS:
                    raise

    def remove(self, path: str) -> None:
        """Remove a file. It is no error if there is none."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def check_writable(self) -> None:
        """Write and remove a small file, so that a run fails before its work rather than after it.

        Raises:
            OSError: that failed.
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
        if self.is_local:
            self.fs.makedirs(os.path.dirname(full), exist_ok=True)
            write_beside(full, data, os.replace)
        else:
            self.fs.pipe_file(full, data)

    def _has(self, path: str, data: bytes) -> bool:
        try:
            return self.read_bytes(path) == data
        except FileNotFoundError:
            return False


def write_beside(path: str, data: bytes, give_name: Callable[[str, str], None]) -> None:
    """Write a file on a disk beside its name, and give it the name by `os.replace` or `os.link`."""
    folder, name = os.path.split(path)
    partial = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        give_name(partial, path)
        _sync_folder(folder)
    finally:
        with suppress(FileNotFoundError):
            os.remove(partial)


def _sync_folder(folder: str) -> None:
    """Make the names in a folder last, so that what is written later cannot outlive them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot, and need not
            os.fsync(handle)
    finally:
        os.close(handle)


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _is_file(path: str, suffix: str) -> bool:
    return path.endswith(suffix) and not _name(path).startswith(".")


def _changed(info: dict[str, Any]) -> str:
    return str(info.get("mtime") or info.get("LastModified") or info.get("last_modified") or "")


def fingerprint(info: dict[str, Any]) -> str:
    """Return an identifier of a file's content: its etag, else its size and time of change."""
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if etag:
        return str(etag).strip('"')
    return f"{info['size']}-{_changed(info)}"


def is_damaged_parquet(error: Exception) -> bool:
    """Return whether an error means that the file is at fault, not the store.

    Also of a footer or page that it cannot parse or decompress pyarrow raises an OSError, but one
    without a number.
    """
    if isinstance(error, pa.ArrowInvalid | pa.ArrowNotImplementedError):
        return True
    return type(error) is OSError and error.errno is None


def sha256(data: bytes) -> str:
    """Return the SHA-256 of data in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
