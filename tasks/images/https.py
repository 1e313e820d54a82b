"""Images from https servers, and from none that only this machine can reach.

A table may name a server on the inside of a network, or a public name that leads there: the address
is checked after it was looked up, and it is that address which is connected to. Each redirect is a
connection of its own. Proxies of the environment are not used, as they would look up names
themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, TypeVar
from urllib.error import HTTPError

from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.images.uris import ImageError

Sock = TypeVar("Sock", bound=socket.socket)

SILENCE_SECONDS = 15  # without a byte
WHOLE_SECONDS = 60  # for all of an image: connecting, redirects, headers, bytes
CHUNK = 1 << 16  # bytes
TRANSIENT = (408, 429)  # besides 5xx: the server may answer another time


def fetch_https(url: str, limit: int) -> bytes:
    """At most `limit` bytes of an image.

    It takes `WHOLE_SECONDS` at most, however slowly the server answers, and once as long as the
    machine takes to look up a name.

    Raises:
        ImageError: not there, not reachable, too large, too slow, or it leads to http:// or to an
        address that is not public.
    """
    deadline = _Deadline(WHOLE_SECONDS)
    try:
        with deadline, _opener(deadline).open(url, timeout=SILENCE_SECONDS) as reply:
            data = b"".join(_chunks(reply, limit))
            deadline.left()  # what was cut off may look like the end
    except (OSError, http.client.HTTPException, ValueError) as error:
        if deadline.passed:
            raise ImageError(
                RejectCode.IMAGE_UNREACHABLE, f"{url}: not done after {WHOLE_SECONDS} s"
            ) from None
        if isinstance(error, ImageError):
            raise
        gone = isinstance(error, ValueError) or (
            isinstance(error, HTTPError) and error.code not in TRANSIENT and error.code < 500
        )
        code = RejectCode.IMAGE_NOT_FOUND if gone else RejectCode.IMAGE_UNREACHABLE
        raise ImageError(code, f"{url}: {type(error).__name__}: {error}") from None
    if len(data) > limit:
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, f"{url}: more than the limit of {limit} bytes")
    return data


def _chunks(reply: Any, limit: int) -> Iterator[bytes]:
    """Up to one byte more than the limit, so that it is seen to be passed."""
    left = limit + 1
    while left > 0 and (chunk := reply.read1(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk


class _Deadline:
    """So many seconds from now. Then the connection is shut: a server that sends a byte now and
    then is never silent for long, and nothing else interrupts who waits for the end of a line."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True
        self._connection: socket.socket | None = None

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds. Raises TimeoutError if there are none."""
        if (seconds := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        return seconds

    def connection(self, sock: Sock) -> Sock:
        """The socket, which is now the one to be shut."""
        self._connection = sock
        self.left()  # the timer may have come before
        return sock

    def _shut(self) -> None:
        if self._connection is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(
                    self._connection, socket.SHUT_RDWR
                )  # TLS's own would also forget that it is TLS


class _Connection(http.client.HTTPSConnection):
    """Connects to a public address only, and until a deadline."""

    def __init__(self, *args: Any, deadline: _Deadline, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline

    def connect(self) -> None:
        address = public_address(self.host, self.port), self.port
        sock = self._deadline.connection(
            socket.create_connection(address, min(SILENCE_SECONDS, self._deadline.left()))
        )
        wrapped = self._context.wrap_socket(
            sock, server_hostname=self.host, do_handshake_on_connect=False
        )  # type: ignore[attr-defined]
        self.sock = self._deadline.connection(wrapped)
        self.sock.do_handshake()


def public_address(host: str, port: int) -> str:
    """The first address of a host. ImageError if any of them is not public: which one is taken
    would be chance.
    """
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not _is_public(ipaddress.ip_address(str(address).split("%", 1)[0])):
            raise ImageError(
                RejectCode.URI_NOT_ALLOWED, f"{host} is {address}, which is not a public address"
            )
    return str(found[0])


NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Also of an IPv4 address within one of IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = (
            address.ipv4_mapped
            or address.sixtofour
            or (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None)
        )
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request, deadline=self._deadline)  # type: ignore[arg-type]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows without reading what comes with a redirect, which may have no end."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], *rest: Any
    ) -> urllib.request.Request | None:
        fp.close()
        return super().redirect_request(req, fp, *rest)


class _NoHttp(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        raise ImageError(
            RejectCode.URI_NOT_ALLOWED, f"leads to {request.full_url}, which is not https://"
        )


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """Nothing but https: no files, no ftp, no proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Https(deadline),
        _NoHttp(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
