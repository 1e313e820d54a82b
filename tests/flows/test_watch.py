"""What a run lets be seen of it: metrics and logs with the right numbers, and nowhere a credential,
a query or an image.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from distributed import LocalCluster
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fakes import FakeSegmenter
from tests.support.folders import ROOT
from tests.support.runs import plan_of
from tests.support.tables import png, read_rows, write_input
from wordmask.flows.cli.app import main
from wordmask.flows.execution.cluster import open_cluster
from wordmask.flows.execution.dispatcher import Dispatcher
from wordmask.schemas.runs import Receipt
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.telemetry import metrics

FAKE = "tests.support.fakes:FakeSegmenter"
CREDENTIALS = {
    "AWS_SECRET_ACCESS_KEY": "sesameSecretKey/1",
    "AWS_SESSION_TOKEN": "sesameSessionToken2",
}
SIGNATURE, PASSWORD, WORD, BYTES = (
    "sesameSignature3",
    "sesame/Password4",
    "zebrafish",
    b"quokkabytes",
)
TELLTALE = re.compile("|".join((*CREDENTIALS.values(), SIGNATURE, PASSWORD, "sesame")))

CODE = """if True:
    import sys
    from wordmask.flows.prefect_api import configure
    from wordmask.schemas.settings import RunSettings
    configure(verbose=True)
    from distributed import LocalCluster
    from wordmask.flows.segment import segment
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as standing:
        for words in sys.argv[1:]:
            there = {"scheduler": standing.scheduler_address}
            settings = RunSettings.model_validate_json(words).model_copy(update=there)
            summary = segment(settings, factory="tests.support.fakes:Gossip")
            print(summary.model_dump_json(), flush=True)
"""


class Watched(NamedTuple):
    """A run with rejects, and one after it that fails, on one worker: what they left. `traces`:
    what a collector got of them.
    """

    folder: Path
    stdout: str
    stderr: str
    traces: tuple[bytes, ...]

    @property
    def records(self) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.stderr.splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("logger") == "wordmask"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, shared_api: dict[str, str]) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    fine = [{"row_id": f"r{i}", "image": png(i % 3), "query": f"the {WORD} {i}"} for i in range(6)]
    bad: list[dict[str, Any]] = [
        {"image": f"https://images.example/a.png?X-Amz-Signature={SIGNATURE}"},
        {"image": f"https://127.0.0.1/a b.png?X-Amz-Signature={SIGNATURE}&x=1"},
        {"image": f"s3://AKIA:{PASSWORD}@lake/a.png"},
        {"image": BYTES * 9},
        {"image": png(7)[:60] + BYTES + png(7)[71:]},
        {"query": f"unspeakable {WORD}"},
        {"query": f"{WORD} " * 99},
    ]
    rows = fine + [
        {"image": png(9), "query": f"the {WORD}"} | row | {"row_id": f"bad{i}"}
        for i, row in enumerate(bad)
    ]
    write_input(folder / "in.parquet", rows)
    write_input(
        folder / "fails.parquet",
        [{"row_id": f"f{i}", "image": png(), "query": f"the {WORD}"} for i in range(3)]
        + [{"row_id": "f3", "image": png(), "query": f"unbearable {WORD}"}],
    )
    base = {"shard_rows": 4, "retries": 0}
    settings = [
        RunSettings(input=str(folder / name), output=str(folder / "out"), **base)
        for name in ("in.parquet", "fails.parquet")
    ]
    environ = (
        os.environ
        | shared_api
        | CREDENTIALS
        | {
            "PYTHONPATH": str(ROOT),
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        }
    )
    environ |= {"WORDMASK_LOG_JSON": "1", "WORDMASK_METRICS_DIR": str(folder / "metrics")}
    command = [sys.executable, "-c", CODE, *(each.model_dump_json() for each in settings)]
    with collector() as (endpoint, traces):
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280, check=False
        )
    assert done.returncode == 1, done.stderr
    assert "ShardsFailedError: 1 of 1 shards failed" in done.stderr
    return Watched(folder, done.stdout, done.stderr, tuple(traces))


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OpenTelemetry collector: where it listens, and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(
                gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def samples(text: str) -> Counter[tuple[str, str]]:
    """Sums by name and by what is counted, over workers."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[
                sample.name,
                next((v for k, v in sorted(sample.labels.items()) if k != "worker"), ""),
            ] += sample.value
    return found


def test_the_workers_file_counts_what_the_run_counts(watched: Watched) -> None:
    summary = json.loads(watched.stdout)
    files = {
        path.name: samples(path.read_text()) for path in (watched.folder / "metrics").iterdir()
    }
    assert sorted(files) == ["wordmask-0.prom", "wordmask-run.prom"]
    found = files["wordmask-0.prom"]
    assert found["wordmask_rows_total", "mask"] == summary["masks"] == 6
    assert found["wordmask_rows_total", "rejected"] == summary["rows"] - summary["masks"] == 7
    assert {
        code: n for (name, code), n in found.items() if name == "wordmask_rejects_total"
    } == summary["rejects"]
    assert (found["wordmask_shards_total", "done"], found["wordmask_shards_total", "failed"]) == (
        summary["shards"],
        1,
    )
    written = sum(
        path.stat().st_size
        for kind in ("masks", "rejects")
        for path in (watched.folder / "out" / kind).iterdir()
    )
    assert found["wordmask_written_bytes_total", ""] == written
    assert found["wordmask_peak_memory_bytes", ""] > 50e6
    assert found["wordmask_shards_begun", ""] == 0
    assert files["wordmask-run.prom"]["wordmask_shards_waiting", ""] == 0


def test_logs_of_flow_and_workers_say_what_they_are_about(watched: Watched) -> None:
    summary, records = json.loads(watched.stdout), watched.records
    assert all("run_id" in record for record in records)
    first = [record for record in records if record["run_id"] == summary["run_id"]]
    assert Counter(record["message"] for record in first) == {
        "planned": 1,
        "row rejected": 7,
        "shard done": 4,
        "finished": 1,
    }
    rejects = {record["row_id"]: record for record in first if record["message"] == "row rejected"}
    assert {row_id: record["code"] for row_id, record in rejects.items()} == {
        row["row_id"]: row["code"] for row in read_rows(watched.folder / "out", "rejects")
    }
    assert {record["shard_id"] for record in rejects.values()} <= set(summary["shard_ids"])
    second = [record for record in records if record["run_id"] != summary["run_id"]]
    assert [record["message"] for record in second] == ["planned", "shard failed", "shard given up"]
    assert "MemoryError" in second[1]["traceback"]


def test_traces_of_flow_and_workers_hang_together(watched: Watched) -> None:
    summary = json.loads(watched.stdout)
    requests = [ExportTraceServiceRequest.FromString(body) for body in watched.traces]
    spans = [
        span
        for request in requests
        for each in request.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]
    by_id = {span.span_id: span for span in spans}
    ours = [span for span in spans if span.name in ("run", "shard", "read", "infer", "write")]
    assert Counter(span.name for span in ours) == {
        "run": 2,
        "shard": 5,
        "read": 5,
        "infer": 5,
        "write": 4,
    }
    trace_ids = {span.trace_id for span in ours}
    assert len(trace_ids) == 2, "one of each run, through all its processes"

    def above(span: Span) -> list[str]:
        parent = by_id.get(span.parent_span_id)
        return [] if parent is None else [parent.name, *above(parent)]

    for span in ours:
        if span.name in ("read", "infer", "write"):
            assert above(span)[0] == "shard"
        elif span.name == "shard":
            assert "run" in above(span)
    shards = [{a.key: a.value for a in span.attributes} for span in ours if span.name == "shard"]
    done = [
        shard["shard_id"].string_value
        for shard in shards
        if shard["run_id"].string_value == summary["run_id"]
    ]
    assert sorted(done) == sorted(summary["shard_ids"])
    failed = [span for span in ours if span.status.code == Status.StatusCode.STATUS_CODE_ERROR]
    assert sorted(span.name for span in failed) == ["infer", "run", "shard"]


def prefects_database() -> bytes:
    """All that Prefect keeps: logs, states, artifacts."""
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    assert url is not None
    path = Path(url.get_secret_value().split("///", 1)[1])
    return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))


def test_no_credential_and_no_row_is_told_to_anyone(watched: Watched) -> None:
    """A grep of everything, beside the columns of the tables that are the rows' own."""
    kept = prefects_database().decode(errors="replace")
    assert "ShardsFailedError" in kept, "this is not where Prefect keeps what it is told"
    said = {"stdout": watched.stdout, "stderr": watched.stderr, "Prefect": kept}
    said |= {
        f"trace {number}": body.decode(errors="replace")
        for number, body in enumerate(watched.traces)
    }
    said |= {
        path.name: path.read_text()
        for path in watched.folder.rglob("*")
        if path.suffix in (".json", ".prom")
    }
    tables = {
        path.name: pq.read_table(path).to_pylist()
        for kind in ("masks", "rejects")
        for path in (watched.folder / "out" / kind).iterdir()
    }
    shown = {name: repr(rows) for name, rows in tables.items()}
    assert not [name for name, text in (said | shown).items() if TELLTALE.search(text)]
    details = {name: repr([row.get("detail") for row in rows]) for name, rows in tables.items()}
    assert not [
        name
        for name, text in (said | details).items()
        if re.search(f"{WORD}|{BYTES.decode()[:8]}|unspeakable|unbearable", text)
    ]
    uris = {
        row["row_id"]: row["image_uri"]
        for row in read_rows(watched.folder / "out", "rejects")
        if row["image_uri"]
    }
    assert uris["bad0"] == "https://images.example/a.png?***", (
        "what is left of a presigned URI says which image it was"
    )


@pytest.mark.parametrize(
    "place",
    [
        f"s3://AKIA:{PASSWORD}@lake/in.parquet",
        f"https://host/in.parquet?X-Amz-Signature={SIGNATURE}",
    ],
)
def test_the_command_takes_no_credentials_and_does_not_repeat_them(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["wordmask", "plan", place, "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "holds a password, a signature" in said.err
    assert not TELLTALE.search(said.err + said.out)


def test_dask_serves_the_numbers_of_a_run(tmp_path: Path) -> None:
    rows = [
        {"row_id": f"r{i}", "image": png(i), "query": f"thing {i}" if i % 4 else ""}
        for i in range(9)
    ]
    settings = RunSettings(
        input=write_input(tmp_path / "in.parquet", rows), output=str(tmp_path / "out"), shard_rows=2
    )
    plan = plan_of(settings, FakeSegmenter("demo").revision)
    receipts: list[Receipt] = []
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        dashboard_address=None,
        protocol="tcp://",
        host="127.0.0.1",
    ) as standing:
        asked = settings.model_copy(update={"scheduler": standing.scheduler_address})
        with open_cluster(asked, plan.shards[0].model_revision, FAKE) as client:
            (worker,) = client.scheduler_info()["workers"].values()
            address = f"http://127.0.0.1:{worker['services']['dashboard']}/metrics"
            before = samples(fetch(address))
            Dispatcher(client, asked, receipts.append).run(plan.pending)
            found = samples(fetch(address))
    added = {key: found[key] - before[key] for key in found}
    assert added["wordmask_rows_total", "mask"] == sum(receipt.masks for receipt in receipts) == 6
    assert (
        added["wordmask_rows_total", "rejected"]
        == added["wordmask_rejects_total", "empty_query"]
        == 3
    )
    assert added["wordmask_shards_total", "done"] == len(receipts) == 5
    assert added["wordmask_image_bytes_total", ""] == sum(len(png(i)) for i in range(9) if i % 4)
    assert added["wordmask_shard_seconds_total", "infer"] == pytest.approx(
        sum(receipt.timings.infer for receipt in receipts)
    )
    assert found["wordmask_model_busy_share", ""] in {
        receipt.timings.busy_share for receipt in receipts
    }
    assert found["dask_worker_threads", ""] == 2, "Dask's own are beside them"


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as reply:
        return str(reply.read().decode())


def test_gpus_are_told_of_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def unknown(gpu: int) -> int:
        if gpu:
            raise ModuleNotFoundError("nvidia-ml-py is not installed")
        return 75

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda gpu: (10 + gpu, 100),
        "max_memory_allocated": lambda gpu: 80 + gpu,
        "utilization": unknown,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    found = {
        (s.name, s.labels["gpu"], s.labels.get("what")): s.value
        for m in metrics._Gpus().collect()
        for s in m.samples
    }
    assert found["wordmask_gpu_memory_bytes", "1", "used"] == 89
    assert found["wordmask_gpu_memory_bytes", "0", "peak"] == 80
    assert [found.get(("wordmask_gpu_busy_share", gpu, None)) for gpu in "01"] == [0.75, None]


@pytest.mark.parametrize(
    "fault", [OSError("No space left on device"), torch.AcceleratorError("device lost")]
)
def test_metrics_that_cannot_be_written_end_nothing(
    fault: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise fault

    monkeypatch.setenv("WORDMASK_METRICS_DIR", str(tmp_path / "metrics"))
    monkeypatch.setattr(metrics, "write_to_textfile", broken)
    for _ in range(3):
        metrics.save("0")
    assert [record.message for record in caplog.records if record.name == "wordmask"] == [
        "metrics not written"
    ]
