"""Connections to https servers, but to none that only this machine can reach.

A table may name a server inside a network, or a public name that leads there. The addresses are
checked after the name was looked up, and it is these addresses which are connected to. Each
redirect is a connection of its own. Proxies of the environment are not used, as they would look up
names themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import math
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from typing import IO, Any, TypeVar

from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.images.host_limits import HostSlot
from wordmask.tasks.images.uris import ImageError

Sock = TypeVar("Sock", bound=socket.socket)

SILENCE_SECONDS = 15  # without a byte
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Deadline:
    """A time limit for a connection, from its `with` on; the connection is shut when it has passed.

    A server that sends a byte now and then is never silent for long, and nothing else interrupts a
    read that waits for the end of a line.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = math.inf
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True
        self._connection: socket.socket | None = None

    def __enter__(self) -> None:
        self._end = time.monotonic() + self._seconds
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

    def __init__(self, *args: Any, deadline: Deadline, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline

    def connect(self) -> None:
        """Connect to the first address that answers, of those that the name stands for."""
        failure: OSError | None = None
        for address in public_addresses(self.host, self.port):
            try:
                self.sock = self._connect_to(address)
                return
            except ssl.SSLCertVerificationError:
                raise  # another address would be no more trustworthy
            except OSError as error:
                self._deadline.seconds_left()
                failure = error
        assert failure is not None  # a name that is looked up has an address
        raise failure

    def _connect_to(self, address: str) -> ssl.SSLSocket:
        timeout = min(SILENCE_SECONDS, self._deadline.seconds_left())
        plain = socket.create_connection((address, self.port), timeout)
        try:
            self._deadline.watch(plain)
            wrapped = self._context.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
        except BaseException:
            plain.close()
            raise
        try:
            self._deadline.watch(wrapped)
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


def public_addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host, each once, in the order in which they are to be tried.

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
    return [*dict.fromkeys(addresses)]


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
    """Opens URLs through `_Connection`, within the limit of each host."""

    def __init__(self, deadline: Deadline, slot: HostSlot) -> None:
        super().__init__()
        self._deadline = deadline
        self._slot = slot

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        self._slot.move_to(request.host, self._deadline.seconds_left())
        return self.do_open(_Connection, request, deadline=self._deadline)  # type: ignore[arg-type]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect without reading its body, which may have no end."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], *rest: Any
    ) -> urllib.request.Request | None:
        fp.close()
        redirected = super().redirect_request(req, fp, *rest)
        if redirected is not None:
            redirected.method = req.get_method()  # a HEAD stays one
        return redirected


class _NoHttp(urllib.request.HTTPHandler):
    """Refuses http://."""

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        detail = f"leads to {request.full_url}, which is not https://"
        raise ImageError(RejectCode.URI_NOT_ALLOWED, detail)


def https_opener(deadline: Deadline, slot: HostSlot) -> urllib.request.OpenerDirector:
    """Return an opener of nothing but https: no files, no ftp, no proxies."""
    handlers = (
        _Https(deadline, slot),
        _NoHttp(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    )
    opener = urllib.request.OpenerDirector()
    opener.addheaders = []  # Python's own name
    for handler in handlers:
        opener.add_handler(handler)
    return opener
