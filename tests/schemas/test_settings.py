"""Settings are checked when made, and what changes the masks changes their hash."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from wordmask.schemas.commands import seconds_of_budget
from wordmask.schemas.settings import Columns, RunSettings, SegmentSettings

RUN = {"input": "in.parquet", "output": "out"}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"refiner_iterations": -1}, "refiner_iterations"),
        ({"refiner_iterations": 101}, "refiner_iterations"),
        ({"dtype": "float16"}, "dtype"),
        ({"path_style": "wavy"}, "path_style"),
        ({"max_image_pixels": 0}, "max_image_pixels"),
        (
            {"max_image_pixels": 178_956_971},
            "max_image_pixels",
        ),  # Pillow refuses it whatever is set here
        ({"max_image_bytes": 0}, "max_image_bytes"),
        ({"carry": ("split", "split")}, "carry"),
        ({"columns": {"picture": "image"}}, "columns.picture"),
        ({"allow_http": True}, "allow_http"),
    ],
)
def test_segment_settings_name_the_field_that_is_wrong(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SegmentSettings.model_validate(values)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == field


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"input": ""}, "input"),
        ({"output": ""}, "output"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"workers": 0}, "workers"),
        ({"retries": -1}, "retries"),
        ({"max_model_errors": 1.5}, "max_model_errors"),
        ({"gpus": 1}, "gpus"),
    ],
)
def test_run_settings_name_the_field_that_is_wrong(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RunSettings.model_validate(RUN | values)
    (error,) = caught.value.errors()
    assert error["loc"] == (field,)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SegmentSettings().dtype = "bfloat16"  # type: ignore[misc]


def test_the_hash_of_the_defaults_is_what_outputs_on_disk_were_named_by() -> None:
    """If this fails, every shard of every existing output is computed anew.

    Change the value only if that is meant.
    """
    assert SegmentSettings().settings_hash == "ecb7371be8499ace"


@pytest.mark.parametrize(
    "changed",
    [
        {"columns": Columns(query="caption")},
        {"carry": ("split",)},
        {"refiner_iterations": 0},
        {"dtype": "bfloat16"},
        {"early_stop": False},
        {"grammar": False},
        {"deterministic": True},
        {"path_style": "smooth"},
        {"max_image_pixels": 1000},
        {"max_image_bytes": 1000},
        {"allow_https": True},
        {"allow_roots": ("s3://lake",)},
    ],
)
def test_every_setting_that_can_change_a_row_changes_the_hash(changed: dict[str, Any]) -> None:
    assert SegmentSettings.model_validate(changed).settings_hash != SegmentSettings().settings_hash


def test_no_setting_was_forgotten_above() -> None:
    assert set(SegmentSettings.model_fields) == {
        "columns",
        "carry",
        "refiner_iterations",
        "dtype",
        "early_stop",
        "grammar",
        "deterministic",
        "path_style",
        "max_image_pixels",
        "max_image_bytes",
        "allow_https",
        "allow_roots",
    }


def test_the_hash_survives_a_trip_through_json() -> None:
    settings = SegmentSettings(carry=("split", "source"), refiner_iterations=2)
    assert (
        SegmentSettings.model_validate_json(settings.model_dump_json()).settings_hash
        == settings.settings_hash
    )


@pytest.mark.parametrize(
    ("text", "price", "seconds"),
    [("90s", None, 90), ("30m", None, 1800), ("1.5h", 2.0, 5400), ("$40", 20.0, 7200)],
)
def test_a_budget_of_time_or_money(text: str, price: float | None, seconds: float) -> None:
    assert seconds_of_budget(text, price) == seconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2", "such as 30m"),
        ("$40h", "such as 30m"),
        ("0h", "such as 30m"),
        ("$40", "--price-per-hour"),
    ],
)
def test_a_budget_that_is_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        seconds_of_budget(text, None)
