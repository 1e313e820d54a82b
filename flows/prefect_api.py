"""Prefect made fit for a terminal: silent, without telemetry, and on a server of its own unless one
was named.

Nothing here imports Prefect at the top: it reads its settings from the environment once, when it is
imported.
"""

from __future__ import annotations

import logging
import os

from wordmask.flows.execution.signals import interrupts_blocked
from wordmask.tasks.telemetry import logs


def configure(verbose: bool) -> None:
    """Set what Prefect reads when it is imported. What the user set in the environment stays."""
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_LEVEL": "INFO" if verbose else "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING" if verbose else "CRITICAL",
        "PREFECT_CLI_COLORS": "false",
        **(
            {"PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json"}
            if logs.is_asked(logs.LOG_JSON)
            else {}
        ),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logs.set_up()


def silence_libraries() -> None:
    """Keep what libraries log to themselves. Called when all is imported: they set their loggers'
    levels as they are.
    """
    ours = () if logs.is_asked(logs.LOG_JSON) else (logs.logger.name,)
    for name in ("distributed", "prefect", "asyncio", "tornado", *ours):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def start_own_api(verbose: bool) -> None:
    """Start Prefect's temporary server, unless PREFECT_API_URL or a profile names another.

    Called when all is imported.

    If Ctrl-C stopped the server too, Prefect would wait in vain to tell it of the interruption. It
    ends with this process.
    """
    import distributed  # noqa: F401
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    if not verbose:
        silence_libraries()
    if get_current_settings().api.url is None:
        with interrupts_blocked():
            SubprocessASGIServer().start()
