"""Text without what lets whoever reads it in: tables, errors and logs are read by more people than
credentials are given to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"

# A password may hold slashes, as S3's secret keys do.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/@'\"]*:[^\s@'\"]*|[^\s/@?#'\"]+)@")
_WEB_QUERY = re.compile(r"(https?://[^\s?#'\"<>]*[?#])[^\s'\"<>]+", re.IGNORECASE)
_PARAMETER = re.compile(r"([?&;][\w.%~-]+=)[^\s&'\"<>]+")


def redacted(text: str, words: Iterable[str] = ()) -> str:
    """The text with user names and passwords of URIs hidden, what follows ? or # in them (a
    presigned one's signature), and `words`.
    """
    for word in words:
        text = text.replace(word, HIDDEN)
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    text = _WEB_QUERY.sub(rf"\1{HIDDEN}", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)
