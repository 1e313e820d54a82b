"""The tool that measures the shape of the code counts what it says."""

from __future__ import annotations

import pytest

from tests.shape import Figure, figures, measure_module, read_modules
from tests.support.folders import ROOT

SOURCE = '''"""A module."""

# A comment is no code.
LIMIT = 3


def clipped(value: int) -> int:
    """Return the value, or the limit.

    Of two paragraphs.
    """
    return value if value < LIMIT else LIMIT
'''


def figure_of(name: str, *sources: str) -> Figure:
    modules = [measure_module(f"tasks/{i}.py", source) for i, source in enumerate(sources)]
    (found,) = [figure for figure in figures(modules) if name in figure.name]
    return found


def test_docstrings_and_comments_are_no_code_lines() -> None:
    module = measure_module("tasks/a.py", SOURCE)
    assert (module.lines, module.code_lines, module.tokens) == (12, 3, 3 + 10 + 8)
    assert module.conditionals == 1
    (function,) = module.functions
    assert (function.name, function.lines, function.tokens) == ("clipped", 6, 10 + 8)


def test_ratios_are_of_all_modules_together() -> None:
    assert figure_of("tokens a code line", SOURCE, "x = 1\n").value == (21 + 3) / 4
    assert figure_of("conditional", SOURCE, "x = 1\n").value == 1000 / 4


def test_a_limit_that_is_passed_names_the_module_and_the_function() -> None:
    long = "def f():\n" + "    x = 1\n" * 60
    found = figure_of("functions of more than 60 lines", SOURCE, long)
    assert not found.holds
    assert found.offenders == ("tasks/1.py: f, 61 lines",)
    found = figure_of("modules of more than 350 lines", SOURCE, "x = 1\n" * 351)
    assert found.offenders == ("tasks/1.py: 351 lines",)


@pytest.mark.parametrize(("files", "holds"), [(12, True), (13, False)])
def test_a_folder_holds_at_most_twelve_files(files: int, holds: bool) -> None:
    assert figure_of("folders", *[SOURCE] * files).holds is holds


def test_wide_lines_are_shown_in_percent() -> None:
    wide = "x = " + "1" * 97
    found = figure_of("100 columns", f"{wide}\ndef f():\n    x = 1\ny = 2\n")
    assert (found.value, found.offenders) == (25, ("tasks/0.py: 25.0",))


def test_the_project_keeps_within_every_limit() -> None:
    beyond = [figure for figure in figures(read_modules(ROOT)) if not figure.holds]
    assert beyond == [], "`make shape` names the places"
