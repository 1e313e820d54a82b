"""The settings of telemetry that a process has from its environment.

The command line sets these variables for its own process, and the workers that a run starts inherit
them. The workers of a standing cluster have what their owner set. They are read here alone.
"""

from __future__ import annotations

import os

from wordmask.schemas.commands import LOG_JSON, LOG_QUERIES, METRICS_DIR, TelemetrySettings


def telemetry_settings() -> TelemetrySettings:
    """Return the settings that the environment holds at this moment."""
    return TelemetrySettings(
        log_json=_is_set(LOG_JSON),
        log_queries=_is_set(LOG_QUERIES),
        metrics_dir=os.environ.get(METRICS_DIR) or None,
    )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "no")
