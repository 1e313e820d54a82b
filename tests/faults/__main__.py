"""Faults with real processes and a real S3 server, and what a run makes of them.

After each fault of `scenarios` the run is repeated to its end, every row is accounted for, and the
masks are those of an undisturbed run, to the byte.

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
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from s3fs import S3FileSystem

from tests.faults.bucket import Bucket, RunEnd, open_bucket
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS
from tests.support.servers import free_port, serve_s3, wait_for
from wordmask.flows.prefect_api import configure
from wordmask.tasks.output.published import open_newest_run
from wordmask.tasks.output.verify import verify_output
from wordmask.tasks.storage import Store

CALM = "s3://lake/calm"  # output of undisturbed runs


@dataclass(frozen=True)
class Result:
    """What a fault did to a run, and how the repeated run ended."""

    fault: str
    disturbed: str
    repeated: str
    passed: bool
    seconds: float


def try_fault(scenario: Scenario, bucket: Bucket, undisturbed: UndisturbedRuns) -> Result:
    """Disturb a run, repeat it, and compare. What went wrong is in the result."""
    begin = time.monotonic()
    disturbed = ""
    repeated = ""
    passed = False
    try:
        end = scenario.disturb(bucket)
        disturbed = _describe(end)
        _require_end(scenario, end)
        bucket.grow_disk()
        again = bucket.run(**scenario.repeat)
        assert again.code == 0, f"the repeated run failed: {again.report}"
        repeated = (
            f"{again.report['rows']} rows, {again.report['shards_computed']} of"
            f" {again.report['shards']} shards computed"
        )
        _require_parts(scenario, bucket, undisturbed)
        passed = True
    except Exception as error:
        repeated += f" {type(error).__name__}: {error}"[:1000]
    seconds = round(time.monotonic() - begin, 1)
    return Result(scenario.name, disturbed, repeated.strip(), passed, seconds)


class UndisturbedRuns:
    """What runs publish when nothing goes wrong: one such run for each input."""

    def __init__(self) -> None:
        self._parts: dict[Hashable, list[bytes]] = {}

    def parts(self, bucket: Bucket) -> list[bytes]:
        """Return the masks and rejects of an undisturbed run over a bucket's input, in order."""
        inputs = bucket.inputs()
        if inputs not in self._parts:
            end = bucket.run(output=CALM)
            assert end.code == 0, f"the undisturbed run failed: {end.report}"
            with _storage(bucket):
                self._parts[inputs] = published_parts(Store.open(CALM))
        return self._parts[inputs]


def published_parts(output: Store) -> list[bytes]:
    """Return masks and rejects of each shard of the newest published run, in the input's order."""
    pairs = open_newest_run(output).parts()
    return [output.read_bytes(part.path) for pair in pairs for part in pair]


def _require_end(scenario: Scenario, end: RunEnd) -> None:
    if scenario.ends == "done":
        assert end.code == 0, f"the disturbed run failed: {end.report}"
    elif scenario.ends == "killed":
        assert end.code != 0, "the disturbed run was not stopped"
    else:
        assert end.code == 1, f"the disturbed run ended with {end.code}, not with an error"
        assert scenario.ends in end.report.get("error", ""), f"another error: {end.report}"


def _require_parts(scenario: Scenario, bucket: Bucket, undisturbed: UndisturbedRuns) -> None:
    expected = undisturbed.parts(bucket)
    with _storage(bucket):
        output = Store.open(bucket.output)
        report = verify_output(output)
        assert report.holds, report.violations
        found = published_parts(output)
    assert found == expected, "other bytes than an undisturbed run"
    if not scenario.leaves_parts:
        assert bucket.contents() == set(expected), "parts that nobody planned"


def _describe(end: RunEnd) -> str:
    if end.code == 0:
        return f"done, {end.report['rows']} rows"
    if end.report.get("error"):
        return str(end.report["error"]).splitlines()[0][:160]
    return f"stopped by signal or interrupt ({end.code})"


@contextmanager
def _storage(bucket: Bucket) -> Generator[None]:
    """Let this process read the bucket through its proxy."""
    before = dict(os.environ)
    S3FileSystem.clear_instance_cache()  # or it would ask the proxy of the fault before
    os.environ.update(
        {name: value for name, value in bucket.environ().items() if name.startswith("AWS_")}
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def servers() -> Generator[str]:
    """Start an S3 server, whose address is yielded, and a Prefect server, named in the environment.

    The environment stays as it is then.
    """
    prefect = Path(sys.executable).parent / "prefect"
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "s3")
        root.mkdir()
        configure(verbose=False)
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        command = [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with serve_s3(root) as address:
            api = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for(port, api, 300)
                yield address
            finally:
                api.terminate()
                api.wait()


QUICK = "; ".join(scenario.name for scenario in SCENARIOS if scenario.quick)


def main() -> None:
    """Try the chosen faults and print what came of them."""
    args = _parser().parse_args()
    chosen = [scenario for scenario in SCENARIOS if _is_chosen(scenario, args)]
    results = []
    undisturbed = UndisturbedRuns()
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are to end with it
    with servers() as store:
        for scenario in chosen:
            with open_bucket(store) as bucket:
                result = try_fault(scenario, bucket, undisturbed)
            results.append(result)
            _print_result(console, result)
    passed = all(result.passed for result in results)
    if args.json:
        faults = [asdict(result) for result in results]
        print(json.dumps({"passed": passed, "faults": faults}, indent=1))
    else:
        Console(width=200).print(_table(results))
    sys.exit(0 if passed else 1)


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _is_chosen(scenario: Scenario, args: argparse.Namespace) -> bool:
    if args.quick and not scenario.quick:
        return False
    return not args.names or any(name in scenario.name for name in args.names)


def _print_result(console: Console, result: Result) -> None:
    state = _state(result)
    console.print(f"{state}  {result.fault}  {result.seconds} s", highlight=False)
    if not result.passed:
        console.print(f"  {result.repeated}", highlight=False, markup=False)


def _state(result: Result) -> str:
    if result.passed:
        return "ok"
    return "FAILED"


def _table(results: Sequence[Result]) -> Table:
    table = Table("fault", "disturbed run", "repeated run", "result", "s")
    for result in results:
        outcome = "passed"
        if not result.passed:
            outcome = "[red]FAILED"
        row = (result.fault, result.disturbed, result.repeated, outcome, str(result.seconds))
        table.add_row(*row)
    return table


if __name__ == "__main__":
    main()
