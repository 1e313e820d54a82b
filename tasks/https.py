"""Images from https servers, and from none that only this machine can reach.

A table may name a server on the inside of a network, or a public name that leads there: the address is checked after it was looked
up, and it is that address which is connected to. Each redirect is a connection of its own. Proxies of the environment are not used,
as they would look up names themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

from schemas.rejects import RejectCode
from tasks.uris import ImageError

SILENCE_SECONDS = 15  # without a byte
WHOLE_SECONDS = 60  # for all of an image
CHUNK = 1 << 16  # bytes
TRANSIENT = (408, 429)  # besides 5xx: the server may answer another time


def fetch_https(url: str, limit: int) -> bytes:
    """At most `limit` bytes of an image.

    Raises:
        ImageError: not there, not reachable, too large, too slow, or it leads to http:// or to an address that is not public.
    """
    try:
        with _opener().open(url, timeout=SILENCE_SECONDS) as reply:
            data = b"".join(_chunks(reply, limit))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        gone = isinstance(error, ValueError) or (isinstance(error, HTTPError) and error.code not in TRANSIENT and error.code < 500)
        code = RejectCode.IMAGE_NOT_FOUND if gone else RejectCode.IMAGE_UNREACHABLE
        raise ImageError(code, f"{url}: {type(error).__name__}: {error}") from None
    if len(data) > limit:
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, f"{url}: more than the limit of {limit} bytes")
    return data


def _chunks(reply: Any, limit: int) -> Iterator[bytes]:
    """Up to one byte more than the limit, so that it is seen to be passed."""
    deadline, left = time.monotonic() + WHOLE_SECONDS, limit + 1
    while left > 0 and (chunk := reply.read1(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done after {WHOLE_SECONDS} s")


class _Connection(http.client.HTTPSConnection):
    """Connects to a public address only."""

    def connect(self) -> None:
        sock = socket.create_connection((public_address(self.host, self.port), self.port), self.timeout)
        self.sock = self._context.wrap_socket(sock, server_hostname=self.host)  # type: ignore[attr-defined]


def public_address(host: str, port: int) -> str:
    """The first address of a host. ImageError if any of them is not public: which one is taken would be chance."""
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not _is_public(ipaddress.ip_address(str(address).split("%", 1)[0])):
            raise ImageError(RejectCode.URI_NOT_ALLOWED, f"{host} is {address}, which is not a public address")
    return str(found[0])


NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Also of an IPv4 address within one of IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _NoHttp(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        raise ImageError(RejectCode.URI_NOT_ALLOWED, f"leads to {request.full_url}, which is not https://")


def _opener() -> urllib.request.OpenerDirector:
    """Nothing but https: no files, no ftp, no proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Https(), _NoHttp(), urllib.request.HTTPRedirectHandler(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener
