"""Images from https servers: a real one in a thread, without TLS, under names that tests invent."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.tables import png
from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.images import https
from wordmask.tasks.images.https import fetch_https, public_address
from wordmask.tasks.images.uris import ImageError

TLS = https._Connection

PUBLIC = "93.184.216.34"
NAMES = {
    "public.example": [PUBLIC],
    "inside.example": ["10.0.0.7"],
    "both.example": [PUBLIC, "127.0.0.1"],
}
REDIRECTS = {
    "/moved": "https://public.example/a.png",
    "/plain": "http://public.example/a.png",
    "/metadata": "https://169.254.169.254/latest",
    "/inside": "https://inside.example/a.png",
    "/circle": "https://public.example/circle",
    "/file": "file:///etc/passwd",
}
STATUS = {"/gone.png": 404, "/slowly.png": 429, "/later.png": 503}

DRIPS = {
    "/drip.png": b"HTTP/1.1 200 OK\r\n\r\n",
    "/drip-status": b"HTTP",
    "/drip-headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "/drip-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "/drip-moved": b"HTTP/1.1 302 Found\r\nLocation: https://public.example/a.png\r\n\r\n",
}  # what a server sends before it goes on by a byte now and then


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
            self.end_headers()
            return
        if self.path in DRIPS:
            self.wfile.write(DRIPS[self.path])
            with suppress(ConnectionError):
                for _ in range(20):
                    self.wfile.write(b"0")
                    time.sleep(0.1)
            return
        self.send_response(STATUS.get(self.path, 200))
        self.end_headers()
        if self.path not in STATUS:
            self.wfile.write(png())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = socket.getaddrinfo
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()

    def look_up(host: str, port: int, *rest: Any, **options: Any) -> Any:
        return [
            entry
            for address in NAMES.get(host, [host])
            for entry in real(address, port, *rest, **options)
        ]

    class Plain(http.client.HTTPConnection):
        def __init__(self, *args: Any, deadline: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.deadline = deadline

        def connect(self) -> None:
            public_address(self.host, 443)
            self.sock = self.deadline.watch(
                socket.create_connection(running.server_address[:2], self.timeout)
            )  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(https, "_Connection", Plain)
    yield
    running.shutdown()
    running.server_close()
    thread.join()


def refused(url: str, limit: int = 1_000_000) -> tuple[RejectCode, str]:
    with pytest.raises(ImageError) as caught:
        fetch_https(url, limit)
    return caught.value.code, caught.value.detail


def test_an_image_is_fetched_up_to_the_limit_also_where_it_moved() -> None:
    assert fetch_https("https://public.example/a.png", len(png())) == png()
    assert fetch_https("https://public.example/moved", 1_000_000) == png()
    assert refused("https://public.example/a.png", 10)[0] == RejectCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    "url",
    [
        "inside.example/a.png",
        "both.example/a.png",
        "public.example/inside",
        "public.example/metadata",
    ],
)
def test_private_addresses_are_refused_also_after_redirects(url: str) -> None:
    code, detail = refused(f"https://{url}")
    assert code == RejectCode.URI_NOT_ALLOWED
    assert "is not a public address" in detail


def test_redirects_out_of_https_are_refused() -> None:
    assert refused("https://public.example/plain")[0] == RejectCode.URI_NOT_ALLOWED
    assert refused("https://public.example/file")[0] in (
        RejectCode.URI_NOT_ALLOWED,
        RejectCode.IMAGE_NOT_FOUND,
    )
    assert refused("https://public.example/circle")[0] == RejectCode.IMAGE_NOT_FOUND


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/gone.png", RejectCode.IMAGE_NOT_FOUND),
        ("/slowly.png", RejectCode.IMAGE_UNREACHABLE),
        ("/later.png", RejectCode.IMAGE_UNREACHABLE),
    ],
)
def test_a_server_that_is_down_is_another_code_than_a_missing_image(
    path: str, code: RejectCode
) -> None:
    assert refused(f"https://public.example{path}")[0] == code


@pytest.mark.parametrize("path", ["/drip.png", "/drip-status", "/drip-headers", "/drip-chunks"])
def test_a_server_that_sends_too_slowly_is_given_up(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "WHOLE_SECONDS", 0.3)
    began = time.monotonic()
    code, detail = refused(f"https://public.example{path}")
    assert code == RejectCode.IMAGE_UNREACHABLE
    assert "not done after 0.3 s" in detail
    assert time.monotonic() - began < 1.5, "the whole reply takes 2 s"


def test_the_body_of_a_redirect_is_not_read() -> None:
    began = time.monotonic()
    assert fetch_https("https://public.example/drip-moved", 1_000_000) == png()
    assert time.monotonic() - began < 1.5, "the whole reply takes 2 s"


def test_a_tls_handshake_that_is_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "WHOLE_SECONDS", 0.3)
    monkeypatch.setattr(https, "_Connection", TLS)
    context = ssl.create_default_context()
    monkeypatch.setattr(
        ssl, "_create_default_https_context", lambda: context
    )  # to make one takes long on a busy machine
    monkeypatch.setattr(https, "public_address", lambda *_: "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, suppress(ConnectionError):
                connection.sendall(
                    b"\x16\x03\x03\x20\x00\x02"
                )  # a long message of the handshake begins
                for _ in range(20):
                    connection.sendall(b"0")
                    time.sleep(0.1)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        code, detail = refused(f"https://public.example:{listening.getsockname()[1]}/a.png")
        assert (code, "not done after 0.3 s" in detail) == (RejectCode.IMAGE_UNREACHABLE, True)
        assert time.monotonic() - began < 1.5
        thread.join(5)
        assert not thread.is_alive(), "it was connected to, and then shut"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:10.0.0.1",
        "2002:a00:1::",
        "64:ff9b::a00:1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(ImageError, match="is not a public address"):
        public_address(address, 443)


def test_public_addresses_are_accepted() -> None:
    assert public_address("public.example", 443) == PUBLIC
    assert public_address("2606:2800:220:1::1", 443) == "2606:2800:220:1::1"
