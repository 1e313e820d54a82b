"""A bucket with a table in it behind a proxy, and runs over it as processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.flow_process import NO_QUIRKS, PRELOADED, Quirks, run_flow
from tests.faults.proxy import Fault, FaultProxy
from tests.support.fakes import BAD_PROCESS, FACTORY
from tests.support.folders import ROOT
from tests.support.tables import IMAGE, image_value, png
from wordmask.schemas.settings import RunSettings

RUN_SECONDS = 400
KINDS = ("masks", "rejects")
# Runs are forked from a process that has imported everything, as imports are most of a short run.
# Their workers start anew.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


def table_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return a Parquet file of rows, three in a row group."""
    with_images = [row | {"image": image_value(row["image"])} for row in rows]
    table = pa.Table.from_pylist(with_images)
    column = table.schema.get_field_index("image")
    images = pa.array([row["image"] for row in with_images], IMAGE)
    table = table.set_column(column, pa.field("image", IMAGE), images)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3)
    return buffer.getvalue()


@dataclass(frozen=True)
class RunEnd:
    """How a run's process ended: its exit code, and its summary or its error."""

    code: int
    report: dict[str, Any]


@dataclass
class Bucket:
    """A bucket for one scenario. `store`: the server's own address; runs know only the proxy's."""

    folder: Path
    store: str
    proxy: FaultProxy
    input: str = "s3://lake/in/table.parquet"  # of runs
    output: str = "s3://lake/out"
    disk: Path | None = None
    runs: int = 0  # that were started

    @property
    def bad_process(self) -> Path:
        """The file by which the first process that looks knows that it is the one at fault."""
        return self.folder / "bad_process"

    def environ(self) -> dict[str, str]:
        """Return the environment of a run."""
        return os.environ | {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.proxy.url,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            BAD_PROCESS: str(self.bad_process),
        }

    def rows(self, count: int, words: str = "thing") -> list[dict[str, Any]]:
        """Return so many plain rows of a table."""
        return [
            {"row_id": f"r{number}", "image": png(number % 4), "query": f"{words} {number}"}
            for number in range(count)
        ]

    def put(self, path: str, data: bytes) -> None:
        """Write to the bucket past the proxy."""
        self._fs().pipe_file(f"lake/{path}", data)

    def get(self, path: str) -> bytes:
        """Read from the bucket past the proxy."""
        data: bytes = self._fs().cat_file(f"lake/{path}")
        return data

    def delete(self, path: str) -> None:
        """Delete from the bucket past the proxy."""
        self._fs().rm_file(f"lake/{path}")

    def names(self, folder: str) -> list[str]:
        """Return the names of what is directly in a folder of the bucket."""
        return [Path(path).name for path in self._fs().ls(f"lake/{folder}", detail=False)]

    def inputs(self) -> tuple[tuple[str, bytes], ...]:
        """Return the input's files, by path."""
        fs = self._fs()
        return tuple((path, fs.cat_file(path)) for path in sorted(fs.find("lake/in")))

    def empty(self) -> None:
        """Remove what an earlier scenario left, through the server: it caches its folders."""
        fs = self._fs()
        for folder in ("in", "out", "calm"):
            for path in fs.find(f"lake/{folder}"):
                fs.rm_file(path)

    def _fs(self) -> Any:
        return fsspec.filesystem(
            "s3",
            endpoint_url=self.store,
            key="key",
            secret="secret",
            use_listings_cache=False,
            config_kwargs={"s3": {"addressing_style": "path"}},
            skip_instance_cache=True,
        )

    def use_small_disk(self) -> None:
        """Have runs write to a disk of 64 KB."""
        disk = self.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
        self.disk = disk
        self.output = str(disk / "out")

    def grow_disk(self) -> None:
        """Make room on the small disk, if there is one."""
        if self.disk is not None:
            subprocess.run(["mount", "-o", "remount,size=64m", str(self.disk)], check=True)

    def start(
        self,
        rows: Sequence[dict[str, Any]] | None = None,
        factory: str = FACTORY,
        quirks: Quirks = NO_QUIRKS,
        **options: Any,
    ) -> BaseProcess:
        """Start a run; `rows` become the table first, twelve plain ones if there is no input."""
        if rows is not None or not self._fs().exists(self.input):
            self.put("in/table.parquet", table_bytes(rows or self.rows(12)))
        base = {
            "input": self.input,
            "output": self.output,
            "shard_rows": 3,
            "workers": 1,
        }
        settings = RunSettings.model_validate(base | options)
        self.runs += 1
        name = f"run-{self.runs}"
        report = self._report_path(name)
        process = FORKS.Process(
            target=run_flow,
            args=(settings.model_dump_json(), self.environ(), report, factory, quirks),
            name=name,
        )
        process.start()
        return process

    def wait(self, process: BaseProcess) -> RunEnd:
        """Wait for a run's end. One that hangs is killed, and its report says so."""
        report = {}
        try:
            process.join(RUN_SECONDS)
        finally:  # also when the suite is told to end
            if process.is_alive():
                report = {"error": f"still running after {RUN_SECONDS} s"}
                process.kill()
                process.join()
        self.proxy.faults = []
        written = self._report_path(process.name)
        if written.exists():
            report = json.loads(written.read_text())
        assert process.exitcode is not None
        return RunEnd(code=process.exitcode, report=report)

    def _report_path(self, name: str) -> Path:
        """Return the file of a run's summary or error."""
        return self.folder / f"{name}.json"

    def run(
        self,
        rows: Sequence[dict[str, Any]] | None = None,
        faults: Sequence[Fault] = (),
        **options: Any,
    ) -> RunEnd:
        """Do a whole run under faults."""
        process = self.start(rows, **options)
        self.proxy.faults = list(faults)
        return self.wait(process)

    def contents(self) -> set[bytes]:
        """Return the contents of all masks and rejects that lie in the output."""
        fs = fsspec.filesystem("file")
        if self.output.startswith("s3://"):
            fs = self._fs()
        root = self.output.removeprefix("s3://")
        paths = (path for kind in KINDS for path in fs.ls(f"{root}/{kind}", detail=False))
        return {fs.cat_file(path) for path in paths}


@contextmanager
def open_bucket(store: str) -> Generator[Bucket]:
    """Yield an empty bucket of a server, behind a proxy of its own."""
    proxy = FaultProxy(store)
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(folder=Path(folder), store=store, proxy=proxy)
        bucket.empty()
        try:
            yield bucket
        finally:
            proxy.close()
            if bucket.disk is not None:
                subprocess.run(["umount", "-l", str(bucket.disk)], check=True)
