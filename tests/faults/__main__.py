"""Every fault of `scenarios`, with real processes and a real S3 server: after each the run is repeated to its end, every row is
accounted for, and the masks are those of an undisturbed night, to the byte.

Run: `python -m tests.faults [--quick] [--json] [NAME ...]`. Exit code 1 if any fault cost a row.
"""

from __future__ import annotations

import argparse
import json
import os
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

from tasks.verify import verify_output
from tests.faults.lake import Lake, Night, lake
from tests.faults.scenarios import SCENARIOS, Scenario


@dataclass(frozen=True)
class Result:
    """What a fault did to the night, and how the repeated one ended."""

    fault: str
    disturbed: str
    repeated: str
    passed: bool
    seconds: float


def try_fault(scenario: Scenario, place: Lake) -> Result:
    """Disturb a night, repeat it, compare. What went wrong is in the result."""
    began = time.monotonic()
    disturbed, repeated, passed = "", "", False
    try:
        night = scenario.disturb(place)
        disturbed = _in_words(night)
        _require_end(scenario, night)
        if place.disks:  # there is room again
            for disk in place.disks:
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = place.night(output=place.output)
        assert again.code == 0, f"the repeated run failed: {again.said}"
        repeated = f"{again.said['rows']} rows, {again.said['shards_computed']} of {again.said['shards']} shards computed"
        with _storage(place):
            report = verify_output(place.output)
        assert report.holds, report.violations
        found = place.parts()
        want = undisturbed(place)
        named = {name: found[name] for name in want}  # parts of a replaced input may lie beside
        assert named == want, "other bytes than an undisturbed night"
        assert scenario.changed_input or found.keys() == want.keys(), "parts that nobody planned"
        passed = True
    except Exception as error:
        repeated += f" {type(error).__name__}: {error}"[:300]
    return Result(scenario.name, disturbed, repeated.strip(), passed, round(time.monotonic() - began, 1))


def undisturbed(place: Lake) -> dict[str, bytes]:
    """What a night over the same table writes when nothing goes wrong."""
    calm = place.night(output="s3://lake/calm")
    assert calm.code == 0, f"the undisturbed run failed: {calm.said}"
    return place.parts()


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
    return night.said["error"].splitlines()[0][:160] if night.said.get("error") else f"stopped by signal or interrupt ({night.code})"


@contextmanager
def _storage(place: Lake) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: value for name, value in place.environ().items() if name.startswith("AWS_")})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def surroundings() -> Iterator[tuple[str, Path, dict[str, str]]]:
    """A real S3 server, and a Prefect server for all nights: its address, the folder it serves, the environment that reaches Prefect."""
    with tempfile.TemporaryDirectory() as folder:
        root, home = Path(folder, "s3"), Path(folder, "prefect")
        root.mkdir()
        port, api_port = Lake.free_port(), Lake.free_port()
        binaries = Path(sys.executable).parent
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        api = {
            "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{api_port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        }  # fmt: skip
        command = [
            binaries / "rclone",
            "serve",
            "s3",
            root,
            "--addr",
            f"127.0.0.1:{port}",
            "--auth-key",
            "key,secret",
            "--vfs-cache-mode",
            "off",
        ]
        store = subprocess.Popen([str(word) for word in command], **quiet, env=os.environ | {"HOME": folder})
        prefect = [str(binaries / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(api_port)]
        server = subprocess.Popen(prefect, **quiet, env=os.environ | api)
        try:
            _wait(port), _wait(api_port)
            yield f"http://127.0.0.1:{port}", root, api
        finally:
            for process in (store, server):
                process.terminate()
                process.wait(20)


def _wait(port: int) -> None:
    import socket

    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing answers on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults with one of these words in their names; all without")
    parser.add_argument("--quick", action="store_true", help="a few of them")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    chosen = [s for s in SCENARIOS if (s.quick or not args.quick) and (not args.names or any(name in s.name for name in args.names))]
    results, console = [], Console(stderr=True)
    with surroundings() as (store, root, api):
        for scenario in chosen:
            with lake(store, root, api) as place:
                results.append(try_fault(scenario, place))
            console.print(f"{'ok' if results[-1].passed else 'FAILED'}  {scenario.name}  {results[-1].seconds} s", highlight=False)
    if args.json:
        print(json.dumps({"passed": all(r.passed for r in results), "faults": [asdict(r) for r in results]}, indent=1))
    else:
        table = Table("fault", "disturbed run", "repeated run", "result", "s")
        for r in results:
            table.add_row(r.fault, r.disturbed, r.repeated, "passed" if r.passed else "[red]FAILED", str(r.seconds))
        Console(width=200).print(table)
    sys.exit(0 if all(r.passed for r in results) else 1)


if __name__ == "__main__":
    main()
