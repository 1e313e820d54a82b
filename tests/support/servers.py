"""Servers on this machine that tests start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve_s3(root: Path) -> Iterator[str]:
    """Address of a server of the buckets in a folder, of which it makes one named lake."""
    (root / "lake").mkdir()
    port = free_port()
    rclone = Path(sys.executable).parent / "rclone"
    command = [
        rclone,
        "serve",
        "s3",
        str(root),
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        "key,secret",
        "--vfs-cache-mode",
        "off",
    ]
    server = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(root)},
    )
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
