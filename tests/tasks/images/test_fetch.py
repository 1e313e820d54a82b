"""The bytes behind an image URI, or a reason why there are none."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from tests.support.tables import png
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.fetch import fetch, image_fingerprint
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.images.uris import ImageError
from wordmask.tasks.storage import Store

SETTINGS = SegmentSettings()
CLIENT = HttpsClient()


def test_relative_and_absolute_paths_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    table = f"file://{tmp_path}/queries.parquet"
    assert fetch("a.png", table, SETTINGS, CLIENT).data == png(3)
    assert fetch(str(tmp_path / "a.png"), table, SETTINGS, CLIENT).data == png(3)
    assert fetch(f"file://{tmp_path}/a.png", table, SETTINGS, CLIENT).data == png(3)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("nowhere.png", RejectCode.IMAGE_NOT_FOUND),
        (".", RejectCode.IMAGE_NOT_FOUND),
        ("https://example.invalid/a.png", RejectCode.URI_NOT_ALLOWED),
        ("http://example.invalid/a.png", RejectCode.URI_NOT_ALLOWED),
        ("ftp://example.invalid/a.png", RejectCode.URI_NOT_ALLOWED),
        ("memory://a.png", RejectCode.URI_NOT_ALLOWED),
        (
            "s3://lake/a.png::file:///secret.png",
            RejectCode.URI_NOT_ALLOWED,
        ),  # fsspec would chain these
        ("nul\0.png", RejectCode.IMAGE_NOT_FOUND),
        ("x" * 300 + ".png", RejectCode.IMAGE_NOT_FOUND),
    ],
)
def test_uris_without_a_usable_file_are_rejected(
    tmp_path: Path, uri: str, code: RejectCode
) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(uri, f"file://{tmp_path}/queries.parquet", SETTINGS, CLIENT)
    assert caught.value.code == code


def test_a_store_says_the_same_of_an_image_with_its_bytes_and_without(
    s3: str, tmp_path: Path
) -> None:
    for folder in (f"{s3}/looked-at", f"file://{tmp_path}"):
        Store.open(folder).write_bytes("a.png", png(1))
        fetched = fetch("a.png", f"{folder}/t.parquet", SETTINGS, CLIENT)
        assert fetched.fingerprint is not None
        assert image_fingerprint(f"{folder}/a.png", CLIENT) == fetched.fingerprint
        Store.open(folder).write_bytes("a.png", png(2))
        assert image_fingerprint(f"{folder}/a.png", CLIENT) != fetched.fingerprint
        with pytest.raises(ImageError) as caught:
            image_fingerprint(f"{folder}/gone.png", CLIENT)
        assert caught.value.code == RejectCode.IMAGE_NOT_FOUND


@pytest.mark.parametrize(
    "uri",
    ["s3://", "s3://Not A Bucket/a.png", "s3://lake/nowhere.png", "s3://no-such-bucket/a.png"],
)
def test_names_that_no_store_can_hold_are_rejected(s3: str, uri: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(uri, f"{s3}/queries.parquet", SegmentSettings(allow_roots=("s3://",)), CLIENT)
    assert caught.value.code == RejectCode.IMAGE_NOT_FOUND


def test_a_file_that_is_too_large_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(ImageError) as caught:
        fetch("a.png", f"file://{tmp_path}/t.parquet", SegmentSettings(max_image_bytes=10), CLIENT)
    assert caught.value.code == RejectCode.IMAGE_TOO_LARGE


def test_pipes_devices_and_circular_links_are_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for name in ("pipe.png", "circle.png"):
        with pytest.raises(ImageError) as caught:
            fetch(name, f"file://{tmp_path}/t.parquet", SETTINGS, CLIENT)
        assert caught.value.code == RejectCode.IMAGE_NOT_FOUND, name


def test_an_image_that_may_not_be_read_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png())

    def denied(*_: Any) -> bytes:
        raise PermissionError("not yours")

    monkeypatch.setattr(Store, "read_bytes", denied)
    with pytest.raises(ImageError, match=r"a\.png: access is denied") as caught:
        fetch("a.png", f"file://{tmp_path}/t.parquet", SETTINGS, CLIENT)
    assert caught.value.code == RejectCode.IMAGE_FORBIDDEN


@pytest.mark.parametrize(
    ("status", "rejected"),
    [("AccessDenied", True), ("403", True), ("ExpiredToken", False), ("400", False)],
)
def test_expired_credentials_are_no_fault_of_the_row(
    s3: str, monkeypatch: pytest.MonkeyPatch, status: str, rejected: bool
) -> None:
    def refuse(*_: Any) -> bytes:
        raise translate_boto_error(
            ClientError({"Error": {"Code": status, "Message": "no"}}, "GetObject")
        )

    Store.open(f"{s3}/denied").write_bytes("a.png", png())
    monkeypatch.setattr(Store, "read_bytes", refuse)
    with pytest.raises(ImageError if rejected else OSError):
        fetch(f"{s3}/denied/a.png", f"{s3}/t.parquet", SETTINGS, CLIENT)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BaseHTTPRequestHandler]]:
    """An S3 store that refuses: HEAD by its `head` status, GET by its `get` status and code."""

    class Store(BaseHTTPRequestHandler):
        head, get = 403, (403, "AccessDenied")

        def do_HEAD(self) -> None:
            self.send_response(self.head)
            self.send_header("Content-Length", "99")
            self.end_headers()

        def do_GET(self) -> None:
            status, code = self.get
            error = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
            body = f"<?xml version='1.0'?>{error}".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "sesame")
        yield Store
        server.shutdown()


@pytest.mark.parametrize(
    ("head", "status", "code", "reject"),
    [
        (403, 403, "AccessDenied", RejectCode.IMAGE_FORBIDDEN),
        (400, 400, "InvalidRequest", RejectCode.IMAGE_FORBIDDEN),  # needs the customer's key
        (200, 403, "InvalidObjectState", RejectCode.IMAGE_FORBIDDEN),  # archived
        (403, 404, "NoSuchKey", RejectCode.IMAGE_NOT_FOUND),  # it may be that nobody may list it
        (403, 403, "ExpiredToken", None),
        (400, 400, "ExpiredToken", None),
        (403, 403, "InvalidAccessKeyId", None),
        (403, 403, "RequestTimeTooSkewed", None),
    ],
)
def test_a_refusal_without_a_reason_is_followed_by_a_request_that_gives_one(
    refusing: Any,
    monkeypatch: pytest.MonkeyPatch,
    head: int,
    status: int,
    code: str,
    reject: RejectCode | None,
) -> None:
    monkeypatch.setattr(refusing, "head", head)
    monkeypatch.setattr(refusing, "get", (status, code))
    with pytest.raises(OSError if reject is None else ImageError) as caught:
        fetch("a.png", "s3://lake/t.parquet", SETTINGS, CLIENT)
    assert reject is None or caught.value.code == reject
