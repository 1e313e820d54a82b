"""Prefect made fit for a terminal: silent, without telemetry, on a server of its own.

Its own server is for who named no other. Nothing here imports Prefect at the top: Prefect reads its
settings from the environment once, when it is imported.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

from wordmask.flows.execution.signals import interrupts_blocked
from wordmask.model.runtime.folders import private_temporary_folder
from wordmask.tasks.telemetry import logs
from wordmask.tasks.telemetry.inherited import telemetry_settings

PREFECT_HOME = Path("~/.prefect")
LIBRARIES = ("distributed", "prefect", "asyncio", "tornado")


def configure(verbose: bool) -> None:
    """Set what Prefect reads when it is imported. What the user set in the environment stays."""
    level, server_level = "CRITICAL", "CRITICAL"
    if verbose:
        level, server_level = "INFO", "WARNING"
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_LEVEL": level,
        "PREFECT_SERVER_LOGGING_LEVEL": server_level,
        "PREFECT_CLI_COLORS": "false",
    }
    if not _can_write_prefect_home():
        defaults |= _home_of_prefect_elsewhere()
    if telemetry_settings().log_json:
        defaults["PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER"] = "json"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logs.set_up()


def _can_write_prefect_home() -> bool:
    """Return whether Prefect can keep its database in the folder that it takes by default."""
    try:
        PREFECT_HOME.expanduser().mkdir(parents=True, exist_ok=True)
        return os.access(PREFECT_HOME.expanduser(), os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False


def _home_of_prefect_elsewhere() -> dict[str, str]:
    """Return the variables that put Prefect's home below the temporary folder, if possible."""
    try:
        return {"PREFECT_HOME": str(private_temporary_folder() / "prefect")}
    except OSError:
        return {}  # Prefect itself says what it cannot write


def silence_libraries() -> None:
    """Keep libraries from logging. Called when all is imported: importing sets their levels."""
    names = [*LIBRARIES]
    if not telemetry_settings().log_json:
        names.append(logs.logger.name)
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def start_own_api(verbose: bool) -> None:
    """Start Prefect's temporary server, unless PREFECT_API_URL or a profile names another.

    Called when all is imported. The server ends with this process, and Ctrl-C does not stop it
    before: Prefect would wait in vain to report the interruption to it.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    importlib.import_module("distributed")  # sets the levels of its loggers
    if not verbose:
        silence_libraries()
    if get_current_settings().api.url is None:
        with interrupts_blocked():
            SubprocessASGIServer().start()
