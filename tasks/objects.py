"""What not every store can do: create a file that is not there yet, and remove many at once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from wordmask.tasks.storage import S3_SCHEMES, STORE_ERRORS, WRITE_ATTEMPTS, Store, write_beside

REMOVED_AT_ONCE = 1000  # the most keys in one request to S3
REMOVERS = 16  # requests at once, where each removes one file


def creates_exclusively(store: Store) -> bool:
    """Return whether the store keeps `create` from replacing a file, found out by a try.

    Some S3-compatible stores ignore the condition and write all the same; some file systems have no
    hard links.
    """
    if not (store.is_local or _is_s3(store)):
        return False
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        return create(store, probe, b"first") and not create(store, probe, b"second")
    except STORE_ERRORS:
        return False
    finally:
        with suppress(*STORE_ERRORS):
            store.remove(probe)


def create(store: Store, path: str, data: bytes) -> bool:
    """Write a file unless there is one, in one step, and return whether it holds this data.

    A request that reports an error may have succeeded, so that the content decides: data that must
    not be taken for another's holds a token. Only where `creates_exclusively` is the step one.
    """
    for _ in range(WRITE_ATTEMPTS - 1):
        try:
            _create(store, path, data)
            return True
        except STORE_ERRORS:
            found = _content(store, path)
            if found is not None:
                return found == data
    _create(store, path, data)
    return True


def remove_many(store: Store, paths: Sequence[str]) -> None:
    """Remove files, at most `REMOVED_AT_ONCE`. It is no error if there is none.

    Raises:
        OSError: the store refused to remove one. The message names it.
    """
    if not paths:
        return
    if not _is_s3(store):
        _remove_each(store, paths)
        return
    try:
        refused = _remove_by_one_request(store, paths)
    except STORE_ERRORS:  # not every compatible store has this request
        _remove_each(store, paths)
        return
    if refused:
        raise OSError(f"{store.root}: the store removed all but {len(refused)}: {refused[0]}")


def _is_s3(store: Store) -> bool:
    return not set(S3_SCHEMES).isdisjoint(store.fs.protocol)


def _create(store: Store, path: str, data: bytes) -> None:
    full = store.full(path)
    if store.is_local:
        os.makedirs(os.path.dirname(full), exist_ok=True)
        write_beside(full, data, os.link)
    else:
        store.fs.pipe_file(full, data, mode="create")


def _content(store: Store, path: str) -> bytes | None:
    try:
        return store.read_bytes(path)
    except FileNotFoundError:
        return None


def _remove_each(store: Store, paths: Sequence[str]) -> None:
    with ThreadPoolExecutor(REMOVERS) as pool:
        list(pool.map(store.remove, paths))


def _remove_by_one_request(store: Store, paths: Sequence[str]) -> list[str]:
    """Remove files by one request, and return the store's words on those that it refused."""
    keys = [store.fs.split_path(store.full(path)) for path in paths]
    bucket = keys[0][0]
    listed = {"Objects": [{"Key": key} for _, key, _ in keys], "Quiet": True}
    reply = store.fs.call_s3("delete_objects", Bucket=bucket, Delete=listed)
    return [f"{error.get('Key')} ({error.get('Message')})" for error in reply.get("Errors", [])]
