"""A proxy of an S3 server that lets chosen requests fail as networks, stores and machines do."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import psutil

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "proxy-authenticate",
    "proxy-authorization",
}
SLOW_SECONDS = 3.0
REFUSALS = {  # in S3's own words
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
}


@dataclass(kw_only=True)
class Fault:
    """What happens to some requests.

    Attributes:
        request: pattern of the method and path, such as "PUT /lake/out/masks/.*".
        kind: "slow_down" (503), "expired" (403), "reset_before" (no byte is answered and the store
            never sees the request), "reset_during" (the connection breaks within the reply's body),
            "lost_reply" (the store does it, the reply is lost), "slow" (it takes `SLOW_SECONDS`),
            "truncated" (the body ends early without notice), "late" (the store sees the request
            after `SLOW_SECONDS`), "held" (the store sees it once `released` is set, even if who
            made it is gone), "listed_in_part" (the reply lists no object `key`), or "call".
        times: how many requests meet the fault.
        skip: how many go through before.
        call: for the kind "call": called with the process that made the request, before the store
            sees it, one at a time; if it returns True, that counts as one of the times.
        key: for the kind "listed_in_part".
        happened: how many requests met the fault.
        released: for the kind "held".
        bodies_held: how many requests are wholly here and held.
    """

    request: str
    kind: str
    times: int = 1
    skip: int = 0
    call: Callable[[int], bool] | None = None
    key: str = ""
    happened: int = field(default=0, init=False)
    released: threading.Event = field(default_factory=threading.Event, init=False)
    bodies_held: int = field(default=0, init=False)


class FaultProxy:
    """A proxy on a port of its own; `faults` may change while it runs."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._call_lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):  # the other side was killed, as it is here
                    self.close_connection = True

            def _forward(self) -> None:
                proxy._serve(self, host, int(port))

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler, host: str, port: int) -> None:
        fault = self._fault_of(f"{handler.command} {handler.path}")
        kind = ""
        if fault is not None:
            kind = fault.kind
        if fault is not None and kind == "call":
            self._call(fault, handler)
        if kind == "reset_before":
            _reset(handler)
            return
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        if len(body) < length:  # who sent it was killed meanwhile
            raise ConnectionAbortedError
        if kind == "late":
            time.sleep(SLOW_SECONDS)
        if fault is not None and kind == "held":
            self._hold(fault)
        if kind in REFUSALS:
            _refuse(handler, *REFUSALS[kind])
            return
        upstream = http.client.HTTPConnection(host, port, timeout=60)
        try:
            upstream.request(handler.command, handler.path, body, _end_to_end(handler.headers))
            reply = upstream.getresponse()
            data = reply.read()
        except http.client.HTTPException:  # a table that is replaced while it is read
            _reset(handler)
            return
        finally:
            upstream.close()
        if fault is not None and kind == "listed_in_part":
            data = _without_object(data, fault.key)
        _reply(handler, reply, data, kind)

    def _hold(self, fault: Fault) -> None:
        with self._lock:
            fault.bodies_held += 1
        fault.released.wait()

    def _call(self, fault: Fault, handler: BaseHTTPRequestHandler) -> None:
        with self._call_lock:
            pid = _pid_of(handler.client_address[1])
            if fault.happened < fault.times and fault.call is not None and pid is not None:
                fault.happened += fault.call(pid)

    def _fault_of(self, line: str) -> Fault | None:
        with self._lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.happened < fault.times and re.fullmatch(fault.request, line):
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.happened += fault.kind != "call"
                    return fault
        return None


def _end_to_end(headers: Message) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


def _without_object(listing: bytes, key: str) -> bytes:
    """Return a reply to ListObjectsV2 without an object."""
    listed = ElementTree.fromstring(listing)
    for child in list(listed):
        if unquote(child.findtext("{*}Key", "")) == key:
            listed.remove(child)
    return ElementTree.tostring(listed)


def _reply(
    handler: BaseHTTPRequestHandler, reply: http.client.HTTPResponse, data: bytes, kind: str
) -> None:
    """Pass the store's reply on, as far as the kind of fault lets it."""
    if kind == "lost_reply":
        _reset(handler)
        return
    if kind == "slow":
        time.sleep(SLOW_SECONDS)
    half = data[: len(data) // 2]
    length = reply.headers.get("Content-Length", str(len(data)))
    if kind == "truncated":
        length = str(len(half))
    if kind == "listed_in_part":
        length = str(len(data))
    handler.send_response(reply.status)
    for name, value in _end_to_end(reply.headers).items():
        if name.lower() != "content-length":
            handler.send_header(name, value)
    handler.send_header("Content-Length", length)
    handler.end_headers()
    if kind in ("reset_during", "truncated"):
        data = half
    if handler.command != "HEAD":
        handler.wfile.write(data)
    if kind == "reset_during":
        _reset(handler)


def _refuse(handler: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    text = f"<?xml version='1.0'?>{error}".encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(text)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection with a TCP reset."""
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def _pid_of(port: int) -> int | None:
    """Return the process of this machine whose connection comes from a port."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.pid:
            return int(connection.pid)
    return None
