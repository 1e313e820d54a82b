"""Images from https servers: a real one in a thread, without TLS, under names that tests invent."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from tests.support.tables import png
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.images import connection, https
from wordmask.tasks.images.connection import public_addresses
from wordmask.tasks.images.host_limits import HostLimits
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.images.uris import ImageError

TLS = connection._Connection
URL = "https://public.example"

PUBLIC = "93.184.216.34"
DEAD = "93.184.216.35"
NAMES = {
    "public.example": [PUBLIC],
    "half-dead.example": [DEAD, PUBLIC],
    "dead.example": [DEAD],
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
STATUS = {
    "/gone.png": 404,
    "/login.png": 401,
    "/forbidden.png": 403,
    "/timeout.png": 408,
    "/slowly.png": 429,
    "/broken.png": 500,
    "/later.png": 503,
}

DRIPS = {
    "/drip.png": b"HTTP/1.1 200 OK\r\n\r\n",
    "/drip-status": b"HTTP",
    "/drip-headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "/drip-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "/drip-moved": b"HTTP/1.1 302 Found\r\nLocation: https://public.example/a.png\r\n\r\n",
}  # what a server sends before it goes on by a byte now and then


class Server(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str]]] = []  # path and user agent of each request
    failures: ClassVar[list[tuple[int, dict[str, str]]]] = []  # to answer with before the image

    says: ClassVar[dict[str, str]] = {}  # headers of an image

    def do_HEAD(self) -> None:
        self.asked.append((f"HEAD {self.path}", self.headers["User-Agent"]))
        self.send_response(302 if self.path in REDIRECTS else STATUS.get(self.path, 200))
        if self.path in REDIRECTS:
            self.send_header("Location", REDIRECTS[self.path])
        self.send_image_headers()

    def send_image_headers(self) -> None:
        for name, value in self.says.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["User-Agent"]))
        if self.failures:
            status, headers = self.failures.pop(0)
            if status:  # else the connection is shut without an answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
            return
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
        self.send_image_headers()
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

    class Plain(TLS):
        def _connect_to(self, address: str) -> Any:
            if address == DEAD:
                raise ConnectionRefusedError(address)
            plain = socket.create_connection(running.server_address[:2], self.timeout)  # type: ignore[arg-type]
            return self._deadline.watch(plain)

    context = ssl.create_default_context()  # to make one takes long on a busy machine
    monkeypatch.setattr(ssl, "_create_default_https_context", lambda: context)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(connection, "_Connection", Plain)
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "failures", [])
    yield
    running.shutdown()
    running.server_close()
    thread.join()


def client_of(pauses: list[float] | None = None, **options: Any) -> HttpsClient:
    """Return a client that writes down its pauses instead of making them."""
    written: list[float] = [] if pauses is None else pauses
    return HttpsClient(sleep=written.append, jitter=lambda: 0.5, **options)


def fetch_https(url: str, limit: int) -> bytes:
    return client_of().fetch(url, limit).data


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
        ("/login.png", RejectCode.IMAGE_FORBIDDEN),
        ("/forbidden.png", RejectCode.IMAGE_FORBIDDEN),
        ("/slowly.png", RejectCode.IMAGE_UNREACHABLE),
        ("/later.png", RejectCode.IMAGE_UNREACHABLE),
    ],
)
def test_a_missing_image_a_refusal_and_a_server_that_is_down_have_codes_of_their_own(
    path: str, code: RejectCode
) -> None:
    assert refused(f"{URL}{path}")[0] == code


@pytest.mark.parametrize("path", ["/timeout.png", "/slowly.png", "/broken.png", "/later.png"])
def test_a_busy_server_is_asked_a_few_times_with_growing_pauses(path: str) -> None:
    pauses: list[float] = []
    with pytest.raises(ImageError) as caught:
        client_of(pauses).fetch(f"{URL}{path}", 1_000_000)
    assert caught.value.code == RejectCode.IMAGE_UNREACHABLE
    assert len(Server.asked) == https.TRIES
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("path", ["/gone.png", "/login.png", "/forbidden.png", "/circle"])
def test_an_answer_that_will_not_change_is_not_asked_for_again(path: str) -> None:
    pauses: list[float] = []
    with pytest.raises(ImageError):
        client_of(pauses).fetch(f"{URL}{path}", 1_000_000)
    assert pauses == []


@pytest.mark.parametrize("status", [0, 429, 503])
def test_an_image_that_comes_at_the_second_try_is_taken(status: int) -> None:
    Server.failures.append((status, {}))
    assert fetch_https(f"{URL}/a.png", 1_000_000) == png()
    assert len(Server.asked) == 2


def test_an_image_that_breaks_off_is_fetched_again() -> None:
    Server.failures.append((200, {"Content-Length": "1000"}))
    assert fetch_https(f"{URL}/a.png", 1_000_000) == png()
    Server.failures += [(200, {"Content-Length": "1000"})] * https.TRIES
    code, detail = refused(f"{URL}/a.png")
    assert (code, "IncompleteRead" in detail) == (RejectCode.IMAGE_UNREACHABLE, True)


def test_the_pause_that_a_server_asks_for_is_made() -> None:
    pauses: list[float] = []
    in_20_s = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    asked_for = ["7", in_20_s, "Thu, 01 Jan 1970 00:00:00 GMT", "soon"]
    for value in asked_for:
        Server.failures.append((429, {"Retry-After": value}))
        assert client_of(pauses).fetch(f"{URL}/a.png", 1_000_000).data == png()
    seconds, date, past, unclear = pauses
    assert (seconds, past, unclear) == (7.0, 0.5, 0.5)
    assert 10 < date <= 20


def test_a_pause_beyond_the_deadline_is_not_made() -> None:
    pauses: list[float] = []
    Server.failures.append((429, {"Retry-After": "3600"}))
    with pytest.raises(ImageError, match="429"):
        client_of(pauses).fetch(f"{URL}/a.png", 1_000_000)
    assert (len(Server.asked), pauses) == (1, [])


def test_all_public_addresses_of_a_host_are_tried() -> None:
    assert fetch_https("https://half-dead.example/a.png", 1_000_000) == png()
    assert refused("https://dead.example/a.png")[0] == RejectCode.IMAGE_UNREACHABLE
    assert len(Server.asked) == 1


def test_a_server_is_told_who_asks() -> None:
    fetch_https(f"{URL}/moved", 1_000_000)
    own = RunSettings(input="in", output="out", user_agent="lab/1 (+mailto:us@lab.example)")
    HttpsClient.of(own, HostLimits()).fetch(f"{URL}/a.png", 1_000_000)
    *defaults, set_by_user = [agent for _, agent in Server.asked]
    assert [agent.split("/")[0] for agent in defaults] == ["wordmask", "wordmask"]
    assert set_by_user == "lab/1 (+mailto:us@lab.example)"


@pytest.mark.parametrize("text", ["", "two\nlines", "é"])
def test_a_user_agent_that_no_header_can_hold_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="user_agent"):
        RunSettings(input="in", output="out", user_agent=text)


def test_a_host_gets_no_more_requests_at_a_time_than_its_limit() -> None:
    limits = HostLimits()
    with limits.slot(2) as first, limits.slot(2) as second, limits.slot(2) as third:
        first.move_to("a.example")
        second.move_to("A.example")
        third.move_to("b.example", timeout=0)
        with pytest.raises(TimeoutError):
            third.move_to("a.example", timeout=0)
        second.move_to("b.example", timeout=0)
        third.move_to("a.example", timeout=0)


def test_the_wait_for_a_place_at_a_host_is_not_time_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hours = [0.0]

    class Busy(HostLimits):
        def take(self, *place: Any) -> None:
            hours[0] += 3600
            super().take(*place)

    clock = SimpleNamespace(monotonic=lambda: hours[0])
    monkeypatch.setattr(connection, "time", clock)
    assert HttpsClient(limits=Busy()).fetch(f"{URL}/a.png", 1_000_000).data == png()


def test_a_request_counts_at_its_host_until_it_ends_also_after_a_redirect() -> None:
    class Counted(HostLimits):
        steps: ClassVar[list[str]] = []

        def take(self, host: str, *rest: Any) -> None:
            super().take(host, *rest)
            self.steps.append(f"+{host}")

        def give_back(self, host: str) -> None:
            super().give_back(host)
            self.steps.append(f"-{host}")

    def pause(_: float) -> None:
        Counted.steps.append("pause")

    client = HttpsClient(limits=Counted(), sleep=pause)
    Server.failures.append((503, {}))
    client.fetch("https://half-dead.example/moved", 1_000_000)
    assert Counted.steps == [
        "+half-dead.example",
        "pause",
        "-half-dead.example",
        "+public.example",
        "-public.example",
    ]


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
    monkeypatch.setattr(connection, "_Connection", TLS)
    monkeypatch.setattr(connection, "public_addresses", lambda *_: ["127.0.0.1"])
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
        public_addresses(address, 443)


def test_public_addresses_are_accepted() -> None:
    assert public_addresses("half-dead.example", 443) == [DEAD, PUBLIC]
    assert public_addresses("2606:2800:220:1::1", 443) == ["2606:2800:220:1::1"]


CHANGED = {"Last-Modified": "Sun, 29 Nov 2026 08:00:00 GMT", "Content-Length": str(len(png()))}


@pytest.mark.parametrize(
    ("headers", "fingerprint"),
    [
        (CHANGED | {"ETag": '"3c"'}, '"3c"'),
        (CHANGED, f"{len(png())}-Sun, 29 Nov 2026 08:00:00 GMT"),
        ({"Last-Modified": "Sun, 29 Nov 2026 08:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_a_server_says_the_same_of_an_image_with_its_bytes_and_without(
    headers: dict[str, str], fingerprint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "says", headers)
    assert client_of().fetch(f"{URL}/moved", 1_000_000).fingerprint == fingerprint
    Server.asked.clear()
    assert client_of().fingerprint(f"{URL}/moved") == fingerprint
    assert [path for path, _ in Server.asked] == ["HEAD /moved", "HEAD /a.png"]


def test_a_server_that_knows_no_head_leaves_the_question_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(STATUS, "/no-head.png", 405)
    for path, code in (
        ("/no-head.png", RejectCode.IMAGE_UNREACHABLE),
        ("/gone.png", RejectCode.IMAGE_NOT_FOUND),
    ):
        with pytest.raises(ImageError) as caught:
            client_of().fingerprint(f"{URL}{path}")
        assert caught.value.code == code
