"""Images from https servers: tried again where that may help, and gently.

A server that is busy or breaks off is asked again, when it says so or after a growing pause; one
deadline holds for all tries together.
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.images.connection import SILENCE_SECONDS, Deadline, https_opener
from wordmask.tasks.images.fetched import Fetched, fingerprint_of_reply
from wordmask.tasks.images.host_limits import HostLimits, HostSlot
from wordmask.tasks.images.uris import ImageError

T = TypeVar("T")

WHOLE_SECONDS = 60  # for all of an image: tries and pauses, connecting, redirects, headers, bytes
TRIES = 4
PAUSE_SECONDS = 0.5  # before the second try; each further one is twice as long
CHUNK = 1 << 16  # bytes
REFUSALS = (401, 403, 407, 451)
NO_HEAD = (405, 501)  # the server knows no HEAD
TRANSIENT = (408, 429)  # besides 5xx: the server may answer another time


def default_user_agent() -> str:
    """Return the name under which servers know this program."""
    return f"wordmask/{version('wordmask')} (+batch segmentation of the images of a table)"


@dataclass(frozen=True, kw_only=True)
class HttpsClient:
    """How https servers are asked.

    Args:
        limits: counts the requests under way; one for all clients of a process.
        requests_per_host: most requests under way to one host.
        user_agent: what this program calls itself.
        sleep: waits for so many seconds.
        jitter: a random number in 0..1 by which pauses differ, so that clients do not come back
            together.
    """

    limits: HostLimits = field(default_factory=HostLimits)
    requests_per_host: int = 4
    user_agent: str = field(default_factory=default_user_agent)
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    @classmethod
    def of(cls, settings: RunSettings, limits: HostLimits) -> HttpsClient:
        """Return the client of a run in a process that has these limits."""
        return cls(
            limits=limits,
            requests_per_host=settings.requests_per_host,
            user_agent=settings.user_agent or default_user_agent(),
        )

    def fetch(self, url: str, limit: int) -> Fetched:
        """Return an image of `limit` bytes at most.

        It takes `WHOLE_SECONDS` at most, however slowly the server answers, and beyond that the
        time the machine takes to look up a name, and to wait for other requests to the same host.

        Raises:
            ImageError: the image is not there, not given, not reachable, too large or too slow, or
                the URL leads to http:// or to an address that is not public.
        """
        fetched = self._try_until_deadline(url, partial(self._get, url, limit))
        if len(fetched.data) > limit:
            detail = f"{url}: more than the limit of {limit} bytes"
            raise ImageError(RejectCode.IMAGE_TOO_LARGE, detail, fetched.fingerprint)
        return fetched

    def fingerprint(self, url: str) -> str | None:
        """Return the fingerprint of an image, without its bytes; None if the server gives none.

        Raises:
            ImageError: as `fetch` does.
        """
        return self._try_until_deadline(url, partial(self._head, url))

    def _try_until_deadline(self, url: str, ask: Callable[[Deadline, HostSlot], T]) -> T:
        deadline = Deadline(WHOLE_SECONDS)
        try:
            with self.limits.slot(self.requests_per_host) as slot:
                slot.move_to(urlsplit(url).netloc)
                with deadline:
                    return self._try_again(ask, deadline, slot)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if deadline.passed:
                detail = f"{url}: not done after {WHOLE_SECONDS} s"
                raise ImageError(RejectCode.IMAGE_UNREACHABLE, detail) from None
            _close(error)
            if isinstance(error, ImageError):
                raise
            detail = f"{url}: {type(error).__name__}: {error}"
            raise ImageError(_code_of(error), detail) from None

    def _try_again(
        self, ask: Callable[[Deadline, HostSlot], T], deadline: Deadline, slot: HostSlot
    ) -> T:
        """Ask until an answer comes. Raises the last failure."""
        for failures in range(1, TRIES):
            try:
                return ask(deadline, slot)
            except (OSError, http.client.HTTPException) as error:
                pause = self._pause(error, failures)
                if not _may_pass(error) or pause >= deadline.seconds_left():
                    raise
                _close(error)
            self.sleep(pause)
        return ask(deadline, slot)

    def _get(self, url: str, limit: int, deadline: Deadline, slot: HostSlot) -> Fetched:
        request = Request(url, headers={"User-Agent": self.user_agent})
        opener = https_opener(deadline, slot)
        with opener.open(request, timeout=SILENCE_SECONDS) as reply:
            announced = reply.length
            found = fingerprint_of_reply(reply.headers)
            data = b"".join(_chunks(reply, limit))
        # A reply that was cut off, by the deadline or the server, may look like a whole one.
        deadline.seconds_left()
        if len(data) <= limit and announced is not None and len(data) < announced:
            raise http.client.IncompleteRead(data, announced - len(data))
        return Fetched(data, found)

    def _head(self, url: str, deadline: Deadline, slot: HostSlot) -> str | None:
        request = Request(url, headers={"User-Agent": self.user_agent}, method="HEAD")
        try:
            with https_opener(deadline, slot).open(request, timeout=SILENCE_SECONDS) as reply:
                return fingerprint_of_reply(reply.headers)
        except HTTPError as error:
            if error.code not in NO_HEAD:
                raise
            _close(error)
            detail = f"{url}: the server does not say what it has without sending it"
            raise ImageError(RejectCode.IMAGE_UNREACHABLE, detail) from None

    def _pause(self, error: Exception, failures: int) -> float:
        """Return the seconds before the next try: what the server asks for, or ever more."""
        asked = _retry_after(error)
        backoff = PAUSE_SECONDS * 2.0 ** (failures - 1) * (0.5 + self.jitter())
        return max(asked, backoff)


def _close(error: Exception) -> None:
    """Close the connection of a reply that came as an error."""
    if isinstance(error, HTTPError):
        error.close()


def _code_of(error: Exception) -> RejectCode:
    """Return whether the image is not there, not given, or may be had another time."""
    if isinstance(error, HTTPError) and error.code in REFUSALS:
        return RejectCode.IMAGE_FORBIDDEN
    if isinstance(error, HTTPError) and not _may_pass(error):
        return RejectCode.IMAGE_NOT_FOUND
    if isinstance(error, ValueError | http.client.InvalidURL):
        return RejectCode.IMAGE_NOT_FOUND
    return RejectCode.IMAGE_UNREACHABLE


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may be answered a little later."""
    if isinstance(error, HTTPError):
        return error.code in TRANSIENT or error.code >= 500
    if isinstance(error, ValueError | http.client.InvalidURL):
        return False
    reason = error
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        reason = error.reason
    if isinstance(reason, socket.gaierror):
        return reason.errno == socket.EAI_AGAIN
    return not isinstance(reason, ssl.SSLCertVerificationError)


def _retry_after(error: Exception) -> float:
    """Return the seconds that a server asks to wait, 0 where it says nothing or nothing clear."""
    if not isinstance(error, HTTPError):
        return 0.0
    value = str(error.headers.get("Retry-After", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value)
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:  # "-0000", or none at all: HTTP's dates are in UTC
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return 0.0


def _chunks(reply: Any, limit: int) -> Iterator[bytes]:
    """Yield the bytes of a reply up to one more than the limit, which shows that it is passed."""
    left = limit + 1
    while left > 0 and (chunk := reply.read1(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk
