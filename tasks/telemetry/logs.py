"""Logs of a run and its workers: JSON lines that name their run, shard and row.

Machines and many people read logs. No record of this process, whichever library makes it, and no
error that leaves a shard holds credentials. None holds a row's query or its image, unless
the settings ask for queries.

The environment asks for JSON and for queries (`inherited.telemetry_settings`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from wordmask.schemas.redaction import HIDDEN, redacted
from wordmask.tasks.telemetry.inherited import telemetry_settings

# Names of variables whose values are never shown.
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|API_KEY|CREDENTIAL|AUTH_STRING", re.IGNORECASE)
BYTES = re.compile(r"""\bb('|").*?(?<!\\)\1""")  # as Python prints them
MIN_SECRET = 8  # characters; shorter values stand in other words
MAX_DETAIL = 2000  # characters: an error that quotes an image would fill the log

logger = logging.getLogger("wordmask")
# Records are made in libraries and threads that nobody can hand a run's id to; this is what context
# variables are for. Nothing but the factory of records reads it.
_log_context: ContextVar[MappingProxyType[str, str]] = ContextVar(
    "log_context", default=MappingProxyType({})
)


def set_up() -> None:
    """Hide credentials in the records of this process, and log as JSON if the environment asks.

    Doing it again changes nothing.
    """
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Factory):
        logging.setLogRecordFactory(_Factory(make))
    has_lines = any(isinstance(handler, _Lines) for handler in logger.handlers)
    if telemetry_settings().log_json and not has_lines:
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    elif not logger.handlers:
        # Without a handler Python would print warnings, where nobody asked for logs.
        logger.addHandler(logging.NullHandler())


@contextmanager
def log_context(**fields: str) -> Generator[None]:
    """Add fields, such as run_id and shard_id, to the records that any library makes within."""
    given = {name: value for name, value in fields.items() if value}
    token = _log_context.set(MappingProxyType({**_log_context.get(), **given}))
    try:
        yield
    finally:
        _log_context.reset(token)


@contextmanager
def redacted_errors(
    queries: Iterable[str | None] | None = None,
) -> Generator[None]:
    """Remove credentials from the errors that leave the block: Dask and Prefect print them.

    Args:
        queries: queries of rows. If given, the errors quote neither them nor bytes of images.
    """
    try:
        yield
    except Exception as error:
        if queries is None:
            _rewrite(error, without_credentials)
        else:
            hidden = [] if telemetry_settings().log_queries else [*queries]
            _rewrite(error, lambda text: clean(text, hidden))
        raise


def clean(text: str, queries: Iterable[str | None] = ()) -> str:
    """Return a text about rows without their queries, bytes of images and credentials.

    A text longer than `MAX_DETAIL` is cut.
    """
    text = BYTES.sub("bytes", text)
    words = {query.strip() for query in queries if query and query.strip()}
    for query in sorted(words, key=len, reverse=True):
        for form in {query, repr(query)[1:-1]}:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)
    text = without_credentials(text)
    if len(text) > MAX_DETAIL:
        return f"{text[:MAX_DETAIL]}... ({len(text)} characters)"
    return text


def without_credentials(text: str) -> str:
    """Return a text without the credentials of URIs and of this process's environment."""
    return redacted(text, _secrets())


def _secrets() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if SECRET.search(name) and len(value) >= MIN_SECRET
    ]


def _rewrite(error: BaseException, edit: Callable[[str], str]) -> None:
    """Edit the texts of an error and of those that led to it: a traceback shows them all."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        current.args = tuple(_edited(value, edit) for value in current.args)
        for name in ("strerror", "filename"):  # an OSError shows these rather than its args
            value = getattr(current, name, None)
            if isinstance(value, str):
                setattr(current, name, edit(value))
        current = current.__cause__ or current.__context__


def _edited(value: Any, edit: Callable[[str], str]) -> Any:
    """Return an edited text. Values of other types stay."""
    if isinstance(value, str):
        return edit(value)
    return value


class _Factory:
    """Makes log records without credentials, with the fields of the log context."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        vars(record).update(_log_context.get())
        try:
            message = record.getMessage()
        except Exception:  # logging itself reports it, and not to the code that wanted to log
            return record
        shown = without_credentials(message)
        if shown != message:
            record.msg = shown
            record.args = ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = without_credentials(
                logging.Formatter().formatException(record.exc_info)
            )
        return record


class _Lines(logging.StreamHandler[TextIO]):
    """Writes records to the error stream, a JSON document a line."""

    def __init__(self) -> None:
        super().__init__()
        names = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "traceback"}
        self.setFormatter(
            _Json("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names)
        )


class _Json(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Remove credentials also from the fields that a record carries."""
        return {name: _edited(value, without_credentials) for name, value in log_data.items()}
