"""Every fault of `scenarios`, with real processes and a real S3 server: after each the run is
repeated to its end, every row is accounted for, and the masks are those of an undisturbed night, to
the byte.

Run: `python -m tests.faults [--quick] [--json] [NAME ...]`. Exit code 1 if any fault cost a row.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from s3fs import S3FileSystem

from tests.faults.lake import Lake, Night, lake
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.support.servers import free_port, serve_s3, wait_for
from wordmask.flows.prefect_api import configure
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.storage import Store


@dataclass(frozen=True)
class Result:
    """What a fault did to the night, and how the repeated one ended."""

    fault: str
    disturbed: str
    repeated: str
    passed: bool
    seconds: float


def try_fault(scenario: Scenario, place: Lake, calm: Calm) -> Result:
    """Disturb a night, repeat it, compare. What went wrong is in the result."""
    began = time.monotonic()
    disturbed, repeated, passed = "", "", False
    try:
        night = scenario.disturb(place)
        disturbed = _in_words(night)
        _require_end(scenario, night)
        place.more_disk()
        again = place.night()
        assert again.code == 0, f"the repeated run failed: {again.said}"
        repeated = (
            f"{again.said['rows']} rows, {again.said['shards_computed']} of {again.said['shards']}"
            " shards computed"
        )
        with _storage(place):
            report = verify_output(Store.open(place.output))
        assert report.holds, report.violations
        want, found = calm.parts(place), place.parts(place.output)
        assert {name: found.get(name) for name in want} == want, (
            "other bytes than an undisturbed night"
        )
        assert scenario.changed_input or found.keys() == want.keys(), "parts that nobody planned"
        passed = True
    except Exception as error:
        repeated += f" {type(error).__name__}: {error}"[:1000]
    return Result(
        scenario.name, disturbed, repeated.strip(), passed, round(time.monotonic() - began, 1)
    )


class Calm:
    """What nights over a table write when nothing goes wrong: one such night for each table."""

    def __init__(self) -> None:
        self._of_table: dict[bytes, dict[str, bytes]] = {}

    def parts(self, place: Lake) -> dict[str, bytes]:
        table = place.get_behind("in/table.parquet")
        if table not in self._of_table:
            calm = place.night(output="s3://lake/calm")
            assert calm.code == 0, f"the undisturbed run failed: {calm.said}"
            self._of_table[table] = place.parts("s3://lake/calm")
        return self._of_table[table]


def _require_end(scenario: Scenario, night: Night) -> None:
    if scenario.ends == "done":
        assert night.code == 0, f"the disturbed run failed: {night.said}"
    elif scenario.ends == "killed":
        assert night.code != 0, "the disturbed run was not stopped"
    else:
        assert night.code == 1, f"the disturbed run ended with {night.code}, not with an error"
        assert scenario.ends in night.said.get("error", ""), f"another error: {night.said}"


def _in_words(night: Night) -> str:
    if night.code == 0:
        return f"done, {night.said['rows']} rows"
    return (
        night.said["error"].splitlines()[0][:160]
        if night.said.get("error")
        else f"stopped by signal or interrupt ({night.code})"
    )


@contextmanager
def _storage(place: Lake) -> Iterator[None]:
    before = dict(os.environ)
    S3FileSystem.clear_instance_cache()  # or it would ask the proxy of the fault before
    os.environ.update(
        {name: value for name, value in place.environ().items() if name.startswith("AWS_")}
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def surroundings() -> Iterator[str]:
    """A real S3 server, whose address is given; and a Prefect server, named in the environment."""
    with tempfile.TemporaryDirectory() as folder:
        root, api_port = Path(folder, "s3"), free_port()
        root.mkdir()
        configure(verbose=False)
        os.environ |= {
            "PREFECT_HOME": f"{folder}/prefect",
            "PREFECT_API_URL": f"http://127.0.0.1:{api_port}/api",
        }
        serve_api = [
            Path(sys.executable).parent / "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(api_port),
        ]
        with serve_s3(root) as address:
            api = subprocess.Popen(serve_api, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for(api_port, api, 300)
                yield address
            finally:
                api.terminate()
                api.wait()


QUICK = "; ".join(scenario.name for scenario in SCENARIOS if scenario.quick)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="faults with one of these words in their names; all without",
    )
    parser.add_argument("--quick", action="store_true", help=f"only these: {QUICK}")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    chosen = [
        s
        for s in SCENARIOS
        if (s.quick or not args.quick)
        and (not args.names or any(name in s.name for name in args.names))
    ]
    results, console, calm = [], Console(stderr=True), Calm()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are to end with it
    with surroundings() as store:
        for scenario in chosen:
            with lake(store) as place:
                results.append(try_fault(scenario, place, calm))
            console.print(
                f"{'ok' if results[-1].passed else 'FAILED'}  {scenario.name} "
                f" {results[-1].seconds} s",
                highlight=False,
            )
            if not results[-1].passed:
                console.print(f"  {results[-1].repeated}", highlight=False, markup=False)
    if args.json:
        print(
            json.dumps(
                {"passed": all(r.passed for r in results), "faults": [asdict(r) for r in results]},
                indent=1,
            )
        )
    else:
        table = Table("fault", "disturbed run", "repeated run", "result", "s")
        for r in results:
            table.add_row(
                r.fault,
                r.disturbed,
                r.repeated,
                "passed" if r.passed else "[red]FAILED",
                str(r.seconds),
            )
        Console(width=200).print(table)
    sys.exit(0 if all(r.passed for r in results) else 1)


if __name__ == "__main__":
    main()
