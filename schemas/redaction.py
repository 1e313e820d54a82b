"""Text without credentials: more people read tables, errors and logs than have access to stores."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"

# User name and password of a URI. A password may hold slashes, as S3's secret keys do.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/@'\"]*:[^\s@'\"]*|[^\s/@?#'\"]+)@")
# What follows ? or # in a web address, such as the signature of a presigned one.
_WEB_QUERY = re.compile(r"(https?://[^\s?#'\"<>]*[?#])[^\s'\"<>]+", re.IGNORECASE)
# The value of a parameter in other URIs.
_PARAMETER = re.compile(r"([?&;][\w.%~-]+=)[^\s&'\"<>]+")


def redacted(text: str, words: Iterable[str] = ()) -> str:
    """Return a text with the credentials in its URIs hidden, and with them `words`."""
    for word in words:
        text = text.replace(word, HIDDEN)
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    text = _WEB_QUERY.sub(rf"\1{HIDDEN}", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)
