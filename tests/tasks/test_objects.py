"""Creating a file that is not there yet, and removing many, on each kind of store."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wordmask.tasks import objects
from wordmask.tasks.objects import create, creates_exclusively, remove_many
from wordmask.tasks.output.lease import OutputInUseError, acquire_lease
from wordmask.tasks.storage import Store


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


@pytest.fixture
def bucket(s3: str) -> Store:
    """A folder of a server that ignores If-None-Match, as compatible stores do."""
    return Store.open(f"{s3}/{uuid4().hex}")


class ConditionalS3(BaseHTTPRequestHandler):
    """As much of S3 as creating takes, with If-None-Match: the other server does not know it."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match") == "*" and self.path in self.objects:
            error = "<Error><Code>PreconditionFailed</Code><Message>it exists</Message></Error>"
            self.answer(412, error.encode())
            return
        self.objects[self.path] = data
        self.answer(200)

    def do_GET(self) -> None:
        found = self.objects.get(self.path.partition("?")[0])
        if found is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self.answer(200, found)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self.answer(204)

    def answer(self, code: int, data: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def conditional_bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A folder of a server that heeds If-None-Match, as S3 does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ConditionalS3) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield Store.open(f"{s3}/{uuid4().hex}")
        server.shutdown()


def test_s3_is_asked_by_if_none_match(conditional_bucket: Store) -> None:
    assert creates_exclusively(conditional_bucket)
    assert ConditionalS3.objects == {}, "the probe leaves nothing"
    assert create(conditional_bucket, "a", b"mine")
    assert not create(conditional_bucket, "a", b"another's")
    assert conditional_bucket.read_bytes("a") == b"mine"


@pytest.fixture
def heeding(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that heeds the condition, as S3 does."""
    monkeypatch.setattr(objects, "_is_s3", lambda _: True)
    return Store.open(f"memory://{uuid4().hex}")


def test_a_probe_tells_that_a_store_creates_exclusively(disk: Store, heeding: Store) -> None:
    assert creates_exclusively(disk)
    assert os.listdir(disk.root) == [], "it leaves nothing"
    assert creates_exclusively(heeding)


def test_a_store_that_ignores_the_condition_is_found_out(bucket: Store) -> None:
    assert not creates_exclusively(bucket)


def test_a_disk_without_hard_links_is_found_out(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert not creates_exclusively(disk)


def test_of_many_that_create_a_file_one_does(disk: Store) -> None:
    created: list[int] = []
    together = threading.Barrier(8)

    def try_to_create(number: int) -> None:
        together.wait()
        if create(disk, "a/b", str(number).encode()):
            created.append(number)

    threads = [threading.Thread(target=try_to_create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in created] == [disk.read_bytes("a/b")]
    assert os.listdir(disk.full("a")) == ["b"]


def test_a_file_counts_as_created_if_only_the_reply_was_lost(
    heeding: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_file = MemoryFileSystem.pipe_file

    def lose_the_reply(*args: Any, **options: Any) -> None:
        pipe_file(*args, **options)
        raise ConnectionError("reset")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lose_the_reply)
    assert create(heeding, "a", b"mine")
    assert not create(heeding, "a", b"other")


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_many_files_are_removed_and_no_others(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    for name in ("a[1].parquet", "a1.parquet", "b.parquet", "*.parquet", "kept.parquet"):
        store.write_bytes(f"masks/{name}", b"x")
    gone = [f"masks/{name}" for name in ("a[1].parquet", "b.parquet", "*.parquet", "no.parquet")]
    remove_many(store, gone)
    assert store.names("masks", ".parquet") == {"a1", "kept"}
    remove_many(store, [])


def test_many_files_are_one_request(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        bucket.write_bytes(f"masks/{number}.parquet", b"x")
    monkeypatch.setattr(Store, "remove", None)
    remove_many(bucket, [f"masks/{number}.parquet" for number in range(5)])
    assert bucket.names("masks", ".parquet") == set()


def test_one_lease_at_a_time_on_object_storage(bucket: Store) -> None:
    for fence in (1, 2):
        with acquire_lease(bucket) as handle:
            assert handle.fence == fence
            handle.require()
            with pytest.raises(OutputInUseError), acquire_lease(bucket):
                pass
