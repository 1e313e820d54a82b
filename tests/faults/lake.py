"""A bucket with a table in it behind a proxy, and nights over it as processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.night import PRELOADED, run_night
from tests.faults.proxy import Fault, FaultProxy
from tests.support.tables import IMAGE, png
from wordmask.schemas.settings import RunSettings

ROOT = Path(__file__).parents[2]
NIGHT_SECONDS = 400
# Nights are forked from a process that has imported everything, as imports are most of a short
# night. Their workers start anew.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


def table_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(
        [row | {"image": {"bytes": row["image"], "path": None}} for row in rows]
    )
    table = table.set_column(
        table.schema.get_field_index("image"), pa.field("image", IMAGE), table["image"].cast(IMAGE)
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3)
    return buffer.getvalue()


@dataclass(frozen=True)
class Night:
    """How a run's process ended, and what it said: its summary, or its error."""

    code: int
    said: dict[str, Any]


@dataclass
class Lake:
    """Everything of one scenario. `store` is the server's own address, `proxy` what runs are
    told.
    """

    folder: Path
    store: str
    proxy: FaultProxy
    output: str = "s3://lake/out"  # what nights write to
    disk: Path | None = None

    @property
    def said(self) -> Path:
        """Where a night writes what came of it."""
        return self.folder / "said.json"

    def environ(self) -> dict[str, str]:
        keys = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        return (
            os.environ
            | keys
            | {"AWS_ENDPOINT_URL": self.proxy.url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        )

    @staticmethod
    def image(number: int) -> bytes:
        return png(number)

    def rows(self, count: int, words: str = "thing") -> list[dict[str, Any]]:
        return [
            {"row_id": f"r{number}", "image": self.image(number % 4), "query": f"{words} {number}"}
            for number in range(count)
        ]

    def put_behind(self, path: str, data: bytes) -> None:
        """Write to the bucket past the proxy."""
        self._fs().pipe_file(f"lake/{path}", data)

    def get_behind(self, path: str) -> bytes:
        data: bytes = self._fs().cat_file(f"lake/{path}")
        return data

    def delete_behind(self, path: str) -> None:
        self._fs().rm_file(f"lake/{path}")

    def empty(self) -> None:
        """Remove what a lake before this one held, through the server: it remembers what its
        folders hold.
        """
        fs = self._fs()
        for path in (
            path for folder in ("in", "out", "calm") for path in fs.find(f"lake/{folder}")
        ):
            fs.rm_file(path)

    def _fs(self) -> Any:
        options = {
            "endpoint_url": self.store,
            "key": "key",
            "secret": "secret",
            "use_listings_cache": False,
        }
        return fsspec.filesystem(
            "s3",
            **options,
            config_kwargs={"s3": {"addressing_style": "path"}},
            skip_instance_cache=True,
        )

    def use_small_disk(self) -> None:
        """Have nights write to a disk of 64 KB."""
        disk = self.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
        self.disk = disk
        self.output = str(disk / "out")

    def more_disk(self) -> None:
        """There is room again."""
        if self.disk is not None:
            subprocess.run(["mount", "-o", "remount,size=64m", str(self.disk)], check=True)

    def start(self, rows: Sequence[dict[str, Any]] | None = None, **options: Any) -> BaseProcess:
        """Begin a night. `rows` become the table first, twelve plain ones if there is none yet."""
        if rows is not None or not self._fs().exists("lake/in/table.parquet"):
            self.put_behind("in/table.parquet", table_bytes(rows or self.rows(12)))
        base = {
            "input": "s3://lake/in/table.parquet",
            "output": self.output,
            "shard_rows": 3,
            "workers": 1,
        }
        settings = RunSettings.model_validate(base | options)
        self.said.unlink(missing_ok=True)
        process = FORKS.Process(
            target=run_night, args=(settings.model_dump_json(), self.environ(), self.said)
        )
        process.start()
        return process

    def end(self, process: BaseProcess) -> Night:
        """Wait for a night's end. One that hangs is killed, and says so."""
        said = {}
        try:
            process.join(NIGHT_SECONDS)
        finally:  # also when the suite is told to end
            if process.is_alive():
                said = {"error": f"still running after {NIGHT_SECONDS} s"}
                process.kill()
                process.join()
        self.proxy.faults = []
        if self.said.exists():
            said = json.loads(self.said.read_text())
        assert process.exitcode is not None
        return Night(code=process.exitcode, said=said)

    def night(
        self,
        rows: Sequence[dict[str, Any]] | None = None,
        faults: Sequence[Fault] = (),
        **options: Any,
    ) -> Night:
        """A whole run under faults."""
        process = self.start(rows, **options)
        self.proxy.faults = list(faults)
        return self.end(process)

    def parts(self, output: str) -> dict[str, bytes]:
        """Masks and rejects of an output by name."""
        fs, root = (
            (self._fs(), output.removeprefix("s3://"))
            if output.startswith("s3://")
            else (fsspec.filesystem("file"), output)
        )
        found = {}
        for kind in ("masks", "rejects"):
            for path in fs.ls(f"{root}/{kind}", detail=False):
                found[f"{kind}/{Path(path).name}"] = fs.cat_file(path)
        return found


@contextmanager
def lake(store: str) -> Iterator[Lake]:
    """The bucket `lake` of a server behind a proxy of its own, with nothing yet in the folders that
    are used.
    """
    proxy = FaultProxy(store)
    with tempfile.TemporaryDirectory() as folder:
        made = Lake(folder=Path(folder), store=store, proxy=proxy)
        made.empty()
        try:
            yield made
        finally:
            proxy.close()
            if made.disk is not None:
                subprocess.run(["umount", "-l", str(made.disk)], check=True)
