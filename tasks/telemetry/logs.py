"""Logs of a run and its workers: JSON lines that say which run, shard and row they are about.

What is read by machines and many people says nothing that it should not: no record of this process,
whoever makes it, and no error that leaves a shard holds credentials; none holds a row's words or
its image, unless `LOG_QUERIES` asks for the words.

Told by the environment, which a run's own workers inherit. Those of a standing cluster are their
owner's to tell.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from wordmask.schemas.redaction import HIDDEN, redacted

LOG_JSON, LOG_QUERIES = "WORDMASK_LOG_JSON", "WORDMASK_LOG_QUERIES"
METRICS_DIR = (
    "WORDMASK_METRICS_DIR"  # here, as importing tasks.metrics takes longer than `--help` may
)
SECRET = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|API_KEY|CREDENTIAL|AUTH_STRING", re.IGNORECASE
)  # variables whose values are never shown
BYTES = re.compile(r"""\bb('|").*?(?<!\\)\1""")  # as Python prints them
LEAST_SECRET = 8  # characters; shorter values stand in other words
MOST = 2000  # characters of what is said of a row: an error that quotes an image would fill the log

logger = logging.getLogger("wordmask")
_about: ContextVar[MappingProxyType[str, str]] = ContextVar("about", default=MappingProxyType({}))


def set_up() -> None:
    """From here on records of this process hold no credentials; those of this package go to the
    error stream as JSON, if asked for. Doing it again changes nothing."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Factory):
        logging.setLogRecordFactory(_Factory(make))
    if is_asked(LOG_JSON) and not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    elif not logger.handlers:
        logger.addHandler(
            logging.NullHandler()
        )  # else Python prints warnings itself, where nobody asked for logs


def is_asked(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "no")


@contextmanager
def log_context(**what: str) -> Iterator[None]:
    """Records made within, of any library, say what they are about: run_id, shard_id."""
    token = _about.set(
        MappingProxyType({**_about.get(), **{name: value for name, value in what.items() if value}})
    )
    try:
        yield
    finally:
        _about.reset(token)


@contextmanager
def redacted_errors(queries: Iterable[str | None] | None = None) -> Iterator[None]:
    """Errors that leave it quote no credentials, and nothing of rows with these queries: Dask,
    Prefect and the terminal print them.
    """
    try:
        yield
    except Exception as error:
        hidden = () if queries is None or is_asked(LOG_QUERIES) else tuple(queries)
        _rewrite(
            error,
            lambda text: without_credentials(text) if queries is None else clean(text, hidden),
        )
        raise


def clean(text: str, queries: Iterable[str | None] = ()) -> str:
    """What is said of rows with these queries, without the queries, bytes and credentials, and not
    longer than a message is.
    """
    text = BYTES.sub("bytes", text)
    for query in sorted(
        {query.strip() for query in queries if query and query.strip()}, key=len, reverse=True
    ):
        for form in {query, repr(query)[1:-1]}:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)
    text = without_credentials(text)
    return text if len(text) <= MOST else f"{text[:MOST]}... ({len(text)} characters)"


def without_credentials(text: str) -> str:
    """The text without those of URIs and of this process's environment."""
    return redacted(text, _secrets())


def _secrets() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if SECRET.search(name) and len(value) >= LEAST_SECRET
    ]


def _rewrite(error: BaseException, edit: Callable[[str], str]) -> None:
    """Edit what an error says, and those that led to it: a traceback shows them all."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        found.args = tuple(edit(value) if isinstance(value, str) else value for value in found.args)
        for name in (
            "strerror",
            "filename",
        ):  # what an OSError shows rather than its args, if they are set
            if isinstance(value := getattr(found, name, None), str):
                setattr(found, name, edit(value))
        found = found.__cause__ or found.__context__


class _Factory:
    """Makes records without credentials that say what they are about."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        vars(record).update(_about.get())
        try:
            said = record.getMessage()
        except Exception:  # logging itself complains of it, and not to whoever wanted to log
            return record
        if (shown := without_credentials(said)) != said:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = without_credentials(
                logging.Formatter().formatException(record.exc_info)
            )
        return record


class _Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """To the error stream, a JSON document a line."""

    def __init__(self) -> None:
        super().__init__()
        names = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "traceback"}
        self.setFormatter(
            _Json("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names)
        )


class _Json(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {
            name: without_credentials(value) if isinstance(value, str) else value
            for name, value in log_data.items()
        }
