"""What a person is shown of a run that lacks something. On 117a9f2 there was no such run."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from wordmask.flows.cli.console import summary_table
from wordmask.schemas.losses import Gap, KeptFile, Vanished
from wordmask.schemas.runs import RunSummary
from wordmask.schemas.settings import RunSettings


def shown(**values: Any) -> str:
    summary = RunSummary(
        run_id="r",
        settings=RunSettings(input="in", output="out"),
        settings_hash="s",
        model_revision="m",
        started_at="",
        finished_at="",
        masks=0,
        absent=0,
        rejects={},
        shards=3,
        shards_computed=3,
        seconds=10.0,
        **({"rows": 20, "rows_per_second": 2.0} | values),
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(summary_table(summary))
    return captured.get()


def test_a_run_names_its_gaps_the_files_it_kept_and_those_that_vanished() -> None:
    gap = Gap(name="a.parquet", first_row=4, rows=2, reason="a damaged page")
    kept = KeptFile(name="b.parquet", fingerprint="f", rows=3)
    gone = Vanished(files=7, rows=9, share=0.05, names=("c.parquet",))
    text = shown(gaps=(gap,), rows_in_gaps=2, kept=(kept,), vanished=gone)
    assert "2 rows in 1 shard that failed" in text
    assert "a.parquet rows 4-5: a damaged page" in text
    assert "1 file with 3 rows as the run before had them, as they kept changing: b.parquet" in text
    assert "7 files with 9 rows (5.0%): c.parquet, ..." in text


def test_a_run_that_its_budget_ended_says_how_many_more_it_takes() -> None:
    assert "takes them up, in 3 runs of this speed" in shown(rows_left=50)
    assert "There was no time for a row" in shown(rows_left=50, rows_per_second=0.0)
    assert "rows left" not in shown()
