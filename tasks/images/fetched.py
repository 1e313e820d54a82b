"""An image as it was fetched, and the fingerprint by which its store tells it from a later one."""

from __future__ import annotations

from email.message import Message
from typing import NamedTuple


class Fetched(NamedTuple):
    """The encoded bytes of an image.

    `fingerprint` is what its store said of them: the etag, or size and time of change. None: the
    image was in the table, or its server says nothing.
    """

    data: bytes
    fingerprint: str | None = None


def fingerprint_of_reply(headers: Message) -> str | None:
    """Return the etag of a web server's reply, else size and time of change if it gives both."""
    etag = headers.get("ETag")
    if etag:
        return str(etag)
    size = headers.get("Content-Length")
    changed = headers.get("Last-Modified")
    if not size or not changed:
        return None
    return f"{size}-{changed}"
