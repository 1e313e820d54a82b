"""What tests of every part share: small tables, real photographs, a real S3-compatible server."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="session")
def coco100() -> Path:
    """The folder of 100 real photographs; tests read it in place."""
    folder = SHARED / "data" / "coco100"
    if not folder.is_dir():
        pytest.fail(f"{folder} is not there: these tests are about real photographs")
    return folder


def png(seed: int = 0, *, height: int = 24, width: int = 32) -> bytes:
    """A small picture that differs by seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_input(path: Path, rows: list[dict[str, Any]], *, row_group_size: int | None = None) -> str:
    """A Parquet table of rows whose `image` is bytes, a path, or a dict of both."""
    table = pa.Table.from_pylist([row | {"image": _image(row["image"])} for row in rows])
    schema = pa.schema([pa.field("image", IMAGE) if field.name == "image" else field for field in table.schema])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(schema), path, row_group_size=row_group_size)
    return str(path)


def _image(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    return {"bytes": None, "path": value} if isinstance(value, str) else value


def read_rows(output: str | Path, kind: str) -> list[dict[str, Any]]:
    """All rows of the masks or rejects of a local output's newest published run; where there is none, of its shards that are done."""
    runs = sorted(Path(output, "runs").glob("*.json"))
    if runs:
        parts = json.loads(runs[-1].read_text())[f"{kind}_parts"]
    else:
        parts = [json.loads(receipt.read_text())[f"{kind}_part"] for receipt in sorted(Path(output, "receipts").glob("*.json"))]
    return [row for part in sorted(part["path"] for part in parts) for row in pq.read_table(Path(output, part)).to_pylist()]


def part_of(output: str | Path, kind: str, shard_id: str) -> Path:
    """The file of a shard's masks or rejects in a local output, by its receipt."""
    receipt = json.loads(Path(output, "receipts", f"{shard_id}.json").read_text())
    return Path(output, receipt[f"{kind}_part"]["path"])


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real S3-compatible server on this machine."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as address:
        yield address


@contextmanager
def serve_s3(root: Path) -> Iterator[str]:
    """Address of a server of the buckets in a folder, of which it makes one named lake."""
    (root / "lake").mkdir()
    port = free_port()
    rclone = Path(sys.executable).parent / "rclone"
    command = [rclone, "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret", "--vfs-cache-mode", "off"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(root)})
    try:
        wait_for(port, server, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, server: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the server answers. RuntimeError if it ends, or does not within so long."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{server.args}: nothing answers on port {port}")


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a bucket, with the environment that reaches it."""
    variables = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return "s3://lake"
