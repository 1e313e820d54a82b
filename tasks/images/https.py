"""Images from https servers, but from none that only this machine can reach.

A table may name a server inside a network, or a public name that leads there. The address is
checked after the name was looked up, and it is that address which is connected to. Each redirect is
a connection of its own. Proxies of the environment are not used, as they would look up names
themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
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
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch_https(url: str, limit: int) -> bytes:
    """Return the bytes of an image, `limit` at most.

    It takes `WHOLE_SECONDS` at most, however slowly the server answers, and beyond that the time
    the machine takes to look up a name.

    Raises:
        ImageError: the image is not there, not reachable, too large or too slow, or the URL leads
            to http:// or to an address that is not public.
    """
    deadline = _Deadline(WHOLE_SECONDS)
    try:
        with deadline, _opener(deadline).open(url, timeout=SILENCE_SECONDS) as reply:
            data = b"".join(_chunks(reply, limit))
            deadline.seconds_left()  # a reply that was cut off may look like a whole one
    except (OSError, http.client.HTTPException, ValueError) as error:
        if deadline.passed:
            detail = f"{url}: not done after {WHOLE_SECONDS} s"
            raise ImageError(RejectCode.IMAGE_UNREACHABLE, detail) from None
        if isinstance(error, ImageError):
            raise
        detail = f"{url}: {type(error).__name__}: {error}"
        raise ImageError(_code_of(error), detail) from None
    if len(data) > limit:
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, f"{url}: more than the limit of {limit} bytes")
    return data


def _code_of(error: Exception) -> RejectCode:
    """Return whether the image is not there, or may be another time."""
    if isinstance(error, HTTPError):
        may_pass = error.code in TRANSIENT or error.code >= 500
    else:
        may_pass = not isinstance(error, ValueError)
    return RejectCode.IMAGE_UNREACHABLE if may_pass else RejectCode.IMAGE_NOT_FOUND


def _chunks(reply: Any, limit: int) -> Iterator[bytes]:
    """Yield the bytes of a reply up to one more than the limit, which shows that it is passed."""
    left = limit + 1
    while left > 0 and (chunk := reply.read1(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk


class _Deadline:
    """A time limit for a connection, which is shut when it has passed.

    A server that sends a byte now and then is never silent for long, and nothing else interrupts a
    read that waits for the end of a line.
    """

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

    def seconds_left(self) -> float:
        """Return the seconds until the deadline. Raises TimeoutError if it has passed."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def watch(self, sock: Sock) -> Sock:
        """Make a socket the one that is shut at the deadline, and return it."""
        self._connection = sock
        self.seconds_left()  # the timer may have come before
        return sock

    def _shut(self) -> None:
        if self._connection is None:
            return
        with suppress(OSError):  # it is closed already
            # Not the method of a TLS socket, which would also forget that it is one.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


class _Connection(http.client.HTTPSConnection):
    """A connection to a public address only, and until a deadline."""

    _context: ssl.SSLContext  # made by the base class, whose stubs leave it out

    def __init__(self, *args: Any, deadline: _Deadline, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline

    def connect(self) -> None:
        address = (public_address(self.host, self.port), self.port)
        timeout = min(SILENCE_SECONDS, self._deadline.seconds_left())
        plain = self._deadline.watch(socket.create_connection(address, timeout))
        wrapped = self._context.wrap_socket(
            plain, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock = self._deadline.watch(wrapped)
        wrapped.do_handshake()


def public_address(host: str, port: int) -> str:
    """Return the first address of a host.

    Raises:
        ImageError: any of its addresses is not public: which one is taken would be chance.
    """
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in entries]
    for address in addresses:
        without_scope = address.split("%", 1)[0]
        if not _is_public(ipaddress.ip_address(without_scope)):
            detail = f"{host} is {address}, which is not a public address"
            raise ImageError(RejectCode.URI_NOT_ALLOWED, detail)
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is public. An IPv4 address within one of IPv6 decides."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _ipv4_within(address)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _ipv4_within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class _Https(urllib.request.HTTPSHandler):
    """Opens URLs through `_Connection`."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request, deadline=self._deadline)  # type: ignore[arg-type]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect without reading its body, which may have no end."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], *rest: Any
    ) -> urllib.request.Request | None:
        fp.close()
        return super().redirect_request(req, fp, *rest)


class _NoHttp(urllib.request.HTTPHandler):
    """Refuses http://."""

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        detail = f"leads to {request.full_url}, which is not https://"
        raise ImageError(RejectCode.URI_NOT_ALLOWED, detail)


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """Return an opener of nothing but https: no files, no ftp, no proxies."""
    handlers = (
        _Https(deadline),
        _NoHttp(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    )
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler)
    return opener
