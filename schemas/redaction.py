"""Text without credentials: more people read tables, errors and logs than have access to stores.

Tables keep all of a URI that is no credential, so that their rows can be joined with the input's.
Logs and errors lose the whole query of a web address, as nobody knows all names that secrets have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"

# User name and password of a URI. A password may hold slashes, as S3's secret keys do.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/@'\"]*:[^\s@'\"]*|[^\s/@?#'\"]+)@")
# Those of a web address, where what follows the first slash is the path.
_WEB_USER_INFO = re.compile(r"^(https?://)[^\s/@?#'\"]+@", re.IGNORECASE)
_IS_WEB = re.compile(r"https?://", re.IGNORECASE)
# What follows ? or # in a web address, such as the signature of a presigned one.
_WEB_QUERY = re.compile(r"(https?://[^\s?#'\"<>]*[?#])[^\s'\"<>]+", re.IGNORECASE)
# A parameter of any URI. Its value goes on to where the next one begins.
_NAME = r"[?&;#][\w.%~-]+="
_PARAMETER = re.compile(
    rf"(?P<start>[?&;#](?P<name>[\w.%~-]+)=)(?P<value>(?:(?!{_NAME})[^\s&'\"<>])+)"
)

# Parameters that let their bearer in, in lower case.
_CREDENTIAL = re.compile(
    r"x-(?!oss-(process|style)$)(amz|goog|oss|cos|ms)-.+"
    r"|(aws|oss)?accesskeyid|googleaccessid|key-pair-id"
    r"|sig|sign|hmac|hdn(ts|ea|tl)"
    r"|([\w.-]*[_-])?(token|secret|signature|password|passwd|credentials?)"
    r"|([\w.-]*[_-])?(api|access|secret|auth|subscription)[_-]?key([_-]?id)?"
    r"|pwd|jwt|auth|authorization"
)
# Parameters that come with them, and change whenever the URI is signed anew. By themselves they may
# name anything. The short ones are those of Azure's shared access signatures.
_WITH_CREDENTIAL = re.compile(
    r"expires?|policy|algorithm|se|sp|spr|sv|sr|st|si|sip|ss|srt|skoid|sktid|skt|ske|sks|skv"
)


def redacted(text: str, words: Iterable[str] = ()) -> str:
    """Return a text with the credentials in its URIs hidden, and with them `words`."""
    for word in words:
        text = text.replace(word, HIDDEN)
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    text = _WEB_QUERY.sub(rf"\1{HIDDEN}", text)
    return _without_parameters(text)


def uri_without_credentials(uri: str) -> str:
    """Return a URI with its credentials hidden, and all else as it is."""
    if _IS_WEB.match(uri):
        uri = _WEB_USER_INFO.sub(rf"\1{HIDDEN}@", uri)
    else:
        uri = _USER_INFO.sub(f"{HIDDEN}@", uri)
    return _without_parameters(uri)


def _without_parameters(text: str) -> str:
    """Hide the values of parameters that are credentials, and then of those that come with them."""
    names = (match["name"] for match in _PARAMETER.finditer(text))
    if not any(_is_named(_CREDENTIAL, name) for name in names):
        return text
    return _PARAMETER.sub(_hide, text)


def _hide(parameter: re.Match[str]) -> str:
    name = parameter["name"]
    if _is_named(_CREDENTIAL, name) or _is_named(_WITH_CREDENTIAL, name):
        return parameter["start"] + HIDDEN
    return parameter[0]


def _is_named(names: re.Pattern[str], name: str) -> bool:
    return names.fullmatch(unquote(name).lower()) is not None
