"""What reads the telemetry of a run: a collector of traces, and a parser of metrics."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


@contextmanager
def trace_collector() -> Generator[tuple[str, list[bytes]]]:
    """Yield the address of an OpenTelemetry collector, and the bodies that it received."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()


def sample_sums(metrics: str) -> Counter[tuple[str, str]]:
    """Return the sums of metrics over workers, by name and by what is counted."""
    sums: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "worker"]
            counted = next(iter(labels), "")
            sums[sample.name, counted] += sample.value
    return sums
