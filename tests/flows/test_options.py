"""Options of commands, made from settings classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field, ValidationError
from typer.testing import CliRunner

from tests.support import options_page
from wordmask.flows.cli.options import Fields, option_of, options_of, settings_options
from wordmask.schemas.commands import BudgetSettings, TelemetrySettings
from wordmask.schemas.settings import NO_FLAG, Flag, RunSettings


class Paint(BaseModel):
    colour: Literal["red", "blue"] = Field("red", description="Colour of the wall [of brick].")
    coats: int | None = Field(None, ge=1, le=3, description="Coats of paint.")
    gloss: bool = Field(True, description="Shine.")


class Job(BaseModel):
    wall: Path = Field(description="The wall.")
    paint: Paint = Paint()
    tools: Annotated[tuple[str, ...], Flag("--tool")] = Field((), description="A tool.")
    price: Annotated[float, Flag(metavar="EUR", envvar="PRICE")] = Field(2.5, description="Price.")
    secret: Annotated[str, NO_FLAG] = "none"


class Odd(BaseModel):
    share: float = Field(1.0, gt=0)


def invoke(command: Any, *words: str, **environ: str) -> Any:
    app = typer.Typer(rich_markup_mode="rich")
    app.command()(settings_options(command))
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "160", **environ})


def taken(*words: str, **environ: str) -> Job:
    """Return what a command gets for these words."""
    jobs: list[Job] = []

    def paint(job: Job, json: Annotated[bool, typer.Option("--json")] = False) -> None:
        jobs.append(job)

    result = invoke(paint, *words, **environ)
    assert result.exit_code == 0, result.output
    (job,) = jobs
    return job


def test_fields_that_are_not_given_keep_their_defaults() -> None:
    assert taken("east") == Job(wall=Path("east"))


def test_every_field_can_be_given_by_its_flag() -> None:
    words = ["--colour", "blue", "--coats", "2", "--no-gloss", "--tool", "a", "--tool", "b"]
    assert taken("east", *words, "--price", "3") == Job(
        wall=Path("east"),
        paint=Paint(colour="blue", coats=2, gloss=False),
        tools=("a", "b"),
        price=3.0,
    )


def test_a_field_can_be_given_by_a_variable_of_the_environment() -> None:
    assert taken("east", PRICE="4") == Job(wall=Path("east"), price=4.0)


@pytest.mark.parametrize("words", [("--coats", "4"), ("--coats", "0"), ("--colour", "green")])
def test_values_outside_the_fields_range_and_choices_are_usage_errors(words: list[str]) -> None:
    def paint(job: Job) -> None:
        raise AssertionError("not called")

    result = invoke(paint, "east", *words)
    assert result.exit_code == 2
    assert words[0] in result.output


def test_help_shows_what_the_fields_say() -> None:
    def paint(job: Job) -> None:
        """Paint a wall."""

    lines = invoke(paint, "--help").output.splitlines()
    (colour,) = [line for line in lines if "--colour" in line]
    assert "<red|blue>" in colour
    assert "Colour of the wall [of brick]. [default: red]" in colour
    (coats,) = [line for line in lines if "--coats" in line]
    assert "[1<=x<=3]" in coats
    (price,) = [line for line in lines if "--price" in line]
    assert "EUR" in price
    assert "[env var: PRICE]" in price
    assert any("--no-gloss" in line for line in lines)
    assert any("WALL" in line and "[required]" in line for line in lines)
    assert not any("secret" in line for line in lines)


def test_a_command_can_leave_out_options_and_explain_them_otherwise() -> None:
    def paint(paint: Annotated[Paint, Fields(without=("gloss",), help={"coats": "How thick."})]):  # type: ignore[no-untyped-def]
        assert paint == Paint(coats=2)

    assert invoke(paint, "--coats", "2").exit_code == 0
    shown = invoke(paint, "--help").output
    assert "How thick." in shown
    assert "gloss" not in shown


def test_hidden_options_are_accepted() -> None:
    def paint(paint: Annotated[Paint, Fields(only=("coats",), hidden=True)]):  # type: ignore[no-untyped-def]
        assert paint == Paint(coats=2)

    assert invoke(paint, "--coats", "2").exit_code == 0
    assert "coats" not in invoke(paint, "--help").output


def test_a_command_can_take_one_option_alone() -> None:
    def paint(coats: Annotated[int, option_of(Paint, "coats")] = 1) -> None:
        assert coats == 3

    assert invoke(paint, "--coats", "3").exit_code == 0
    assert "Coats of paint." in invoke(paint, "--help").output


def test_an_error_of_the_settings_names_the_field() -> None:
    def paint(odd: Odd) -> None: ...

    error = invoke(paint, "--share", "0").exception
    assert isinstance(error, ValidationError)
    assert error.errors()[0]["loc"] == ("share",)


def test_no_two_options_have_one_name() -> None:
    classes = (RunSettings, BudgetSettings, TelemetrySettings)
    names = [option.name for settings in classes for option in options_of(settings)]
    assert len(set(names)) == len(names)


def test_the_page_of_options_is_made_from_the_settings_classes() -> None:
    assert options_page.PAGE.read_text() == options_page.page()
