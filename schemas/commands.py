"""Settings of commands beside those of their run: budget, schedule, logs and metrics."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from wordmask.schemas.settings import Flag, Frozen

# Variables of the environment. Workers that a run starts inherit them.
LOG_JSON = "WORDMASK_LOG_JSON"
LOG_QUERIES = "WORDMASK_LOG_QUERIES"
METRICS_DIR = "WORDMASK_METRICS_DIR"


class BudgetSettings(Frozen):
    """The time or money that a run may take, as the command line has it."""

    budget: Annotated[str | None, Flag(metavar="2h|$40")] = Field(
        None,
        description="End within it, counted from the command's start: begin no shard that would end"
        " later, and keep the time back that the last run's verification took.",
    )
    price_per_hour: float | None = Field(
        None, ge=0.0001, description="What all workers together cost an hour, in dollars."
    )

    @property
    def seconds(self) -> float | None:
        """Return the budget in seconds, None without one. Raises ValueError as below."""
        if self.budget is None:
            return None
        return seconds_of_budget(self.budget, self.price_per_hour)


def seconds_of_budget(text: str, price_per_hour: float | None) -> float:
    """Return the seconds of a budget such as "90s", "30m", "2h" or, at a price, "$40".

    Raises:
        ValueError: the text is no budget, or names money where there is no price.
    """
    found = re.fullmatch(r"(\$?)\s*(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None:
        raise _not_a_budget(text)
    dollar, digits, unit = found.groups()
    amount = float(digits)
    is_money = bool(dollar)
    if is_money == bool(unit) or amount == 0:
        raise _not_a_budget(text)
    if not is_money:
        return amount * {"s": 1, "m": 60, "h": 3600}[unit]
    if price_per_hour is None:
        raise ValueError(f"--budget {text}: needs --price-per-hour, what all workers together cost")
    return amount / price_per_hour * 3600


def _not_a_budget(text: str) -> ValueError:
    return ValueError(f"--budget {text}: must be a time such as 30m or 2h, or money such as $40")


class ScheduleSettings(Frozen):
    """When a run is repeated, and by which workers of a Prefect server."""

    cron: str = Field(
        "0 2 * * *", description="When, as minute, hour, day, month, day of the week."
    )
    timezone: str = Field("UTC", description="In which --cron is meant, such as Europe/Berlin.")
    name: str = Field(
        "nightly", description="Name of the deployment; one of this name is replaced."
    )
    pool: str = Field("local", description="Work pool whose workers run it.")


class TelemetrySettings(Frozen):
    """Logs and metrics of this process and of the workers that it starts."""

    log_json: Annotated[bool, Flag(envvar=LOG_JSON)] = Field(
        False, description="Log to the error stream, a JSON document a line."
    )
    log_queries: Annotated[bool, Flag(envvar=LOG_QUERIES)] = Field(
        False, description="Let logs and errors quote the rows' expressions."
    )
    metrics_dir: Annotated[str | None, Flag(envvar=METRICS_DIR)] = Field(
        None, description="Folder for each worker's metrics, as Prometheus text files."
    )

    def environ(self) -> dict[str, str]:
        """Return the variables by which worker processes inherit these settings."""
        return {
            LOG_JSON: "1" if self.log_json else "",
            LOG_QUERIES: "1" if self.log_queries else "",
            METRICS_DIR: self.metrics_dir or "",
        }
