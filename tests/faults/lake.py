"""A bucket with a table in it behind a proxy, and nights over it as processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.settings import RunSettings
from tests.conftest import IMAGE, png
from tests.faults.proxy import Fault, FaultProxy

ROOT = Path(__file__).parents[2]
NIGHT_SECONDS = 400


def table_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist([row | {"image": {"bytes": row["image"], "path": None}} for row in rows])
    table = table.set_column(table.schema.get_field_index("image"), pa.field("image", IMAGE), table["image"].cast(IMAGE))
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
    """Everything of one scenario. `store` is the server's own address, `proxy` what runs are told."""

    folder: Path
    store: str
    proxy: FaultProxy
    api: dict[str, str]
    output: str = "s3://lake/out"
    disks: list[Path] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        return os.environ | keys | self.api | {"AWS_ENDPOINT_URL": self.proxy.url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    @staticmethod
    def image(number: int) -> bytes:
        return png(number)

    def rows(self, count: int, words: str = "thing") -> list[dict[str, Any]]:
        return [{"row_id": f"r{number}", "image": self.image(number % 4), "query": f"{words} {number}"} for number in range(count)]

    def put_behind(self, path: str, data: bytes) -> None:
        """Write to the bucket past the proxy."""
        self._fs().pipe_file(f"lake/{path}", data)

    def get_behind(self, path: str) -> bytes:
        data: bytes = self._fs().cat_file(f"lake/{path}")
        return data

    def delete_behind(self, path: str) -> None:
        self._fs().rm_file(f"lake/{path}")

    def _fs(self) -> Any:
        options = {"endpoint_url": self.store, "key": "key", "secret": "secret", "use_listings_cache": False}
        return fsspec.filesystem("s3", **options, config_kwargs={"s3": {"addressing_style": "path"}}, skip_instance_cache=True)

    def small_disk(self) -> str:
        """A folder on a disk of 64 KB."""
        disk = self.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
        self.disks.append(disk)
        return str(disk / "out")

    @staticmethod
    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    def start(self, rows: Sequence[dict[str, Any]] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Begin a night. `rows` become the table first, twelve plain ones if there is none yet."""
        if rows is not None or not self._fs().exists("lake/in/table.parquet"):
            self.put_behind("in/table.parquet", table_bytes(rows or self.rows(12)))
        self.output = str(options.get("output", self.output))
        base = {"input": "s3://lake/in/table.parquet", "output": self.output, "shard_rows": 3, "workers": 2}
        settings = RunSettings.model_validate(base | options)
        file = self.folder / "settings.json"
        file.write_text(settings.model_dump_json())
        command = [sys.executable, "-m", "tests.faults.night", str(file)]
        return subprocess.Popen(
            command, env=self.environ(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def night(self, rows: Sequence[dict[str, Any]] | None = None, faults: Sequence[Fault] = (), **options: Any) -> Night:
        """A whole run under faults."""
        process = self.start(rows, **options)
        self.proxy.faults = list(faults)
        try:
            out, err = process.communicate(timeout=NIGHT_SECONDS)
        finally:
            self.proxy.faults = []
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        last = out.strip().splitlines()[-1:] or ["{}"]
        said = json.loads(last[0]) if last[0].startswith("{") else {"error": err[-2000:]}
        return Night(code=process.returncode, said=said)

    def parts(self) -> dict[str, bytes]:
        """Masks and rejects of the output by name."""
        fs, root = (self._fs(), "lake/out") if self.output.startswith("s3://") else (fsspec.filesystem("file"), self.output)
        found = {}
        for kind in ("masks", "rejects"):
            for path in fs.ls(f"{root}/{kind}", detail=False):
                found[f"{kind}/{Path(path).name}"] = fs.cat_file(path)
        return found


@contextmanager
def lake(store: str, root: Path, api: dict[str, str]) -> Iterator[Lake]:
    """An empty bucket behind a proxy of its own. `root`: the folder that the server serves."""
    shutil.rmtree(root / "lake", ignore_errors=True)
    (root / "lake").mkdir()
    proxy = FaultProxy(store)
    with tempfile.TemporaryDirectory() as folder:
        made = Lake(folder=Path(folder), store=store, proxy=proxy, api=api)
        try:
            yield made
        finally:
            proxy.close()
            for disk in made.disks:
                subprocess.run(["umount", "-l", str(disk)], check=False)
