"""Telemetry of a run: metrics, logs and traces with the right numbers, and without secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.fakes import FACTORY, FakeSegmenter
from tests.support.folders import ROOT
from tests.support.runs import plan_of
from tests.support.tables import png, published_ids, read_rows, write_input
from tests.support.telemetry import sample_sums, trace_collector
from wordmask.flows.cli.app import main
from wordmask.flows.execution.cluster import open_cluster
from wordmask.flows.execution.dispatcher import Dispatcher
from wordmask.schemas.runs import Receipt
from wordmask.schemas.settings import RunSettings

CREDENTIALS = {
    "AWS_SECRET_ACCESS_KEY": "sesameSecretKey/1",
    "AWS_SESSION_TOKEN": "sesameSessionToken2",
}
SIGNATURE = "sesameSignature3"
PASSWORD = "sesame/Password4"
WORD = "zebrafish"  # of queries
BYTES = b"quokkabytes"  # of images
CONTENT = re.compile(f"{WORD}|{BYTES.decode()[:8]}|unspeakable|unbearable")
SECRET = re.compile("|".join((*CREDENTIALS.values(), SIGNATURE, PASSWORD, "sesame")))

RUNS = """if True:
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


class ObservedRuns(NamedTuple):
    """What a run with rejects, and one after it that fails, left on one worker.

    `traces`: bodies that a collector received.
    """

    folder: Path
    stdout: str
    stderr: str
    traces: tuple[bytes, ...]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Log records of wordmask."""
        lines = [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("logger") == "wordmask"]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, shared_api: dict[str, str]) -> ObservedRuns:
    folder = tmp_path_factory.mktemp("observed")
    write_input(folder / "in.parquet", [*fine_rows(), *rejected_rows()])
    write_input(folder / "fails.parquet", failing_rows())
    settings = [
        RunSettings(input=str(folder / name), output=str(folder / "out"), shard_rows=4, retries=0)
        for name in ("in.parquet", "fails.parquet")
    ]
    environ = os.environ | shared_api | CREDENTIALS
    environ["PYTHONPATH"] = str(ROOT)
    environ["PREFECT_LOGGING_LEVEL"] = "DEBUG"
    environ["WORDMASK_LOG_JSON"] = "1"
    environ["WORDMASK_METRICS_DIR"] = str(folder / "metrics")
    command = [sys.executable, "-c", RUNS, *(each.model_dump_json() for each in settings)]
    with trace_collector() as (endpoint, traces):
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280, check=False
        )
    assert done.returncode == 1, done.stderr
    assert "ShardsFailedError: 1 of 1 shards failed" in done.stderr
    return ObservedRuns(folder, done.stdout, done.stderr, tuple(traces))


def fine_rows() -> list[dict[str, Any]]:
    return [{"row_id": f"r{i}", "image": png(i % 3), "query": f"the {WORD} {i}"} for i in range(6)]


def rejected_rows() -> list[dict[str, Any]]:
    faults: list[dict[str, Any]] = [
        {"image": f"https://images.example/a.png?X-Amz-Signature={SIGNATURE}"},
        {"image": f"https://127.0.0.1/a b.png?X-Amz-Signature={SIGNATURE}&x=1"},
        {"image": f"s3://AKIA:{PASSWORD}@lake/a.png"},
        {"image": BYTES * 9},
        {"image": png(7)[:60] + BYTES + png(7)[71:]},
        {"query": f"unspeakable {WORD}"},
        {"query": f"{WORD} " * 99},
    ]
    row = {"image": png(9), "query": f"the {WORD}"}
    return [row | fault | {"row_id": f"bad{i}"} for i, fault in enumerate(faults)]


def failing_rows() -> list[dict[str, Any]]:
    rows = [{"row_id": f"f{i}", "image": png(), "query": f"the {WORD}"} for i in range(3)]
    return [*rows, {"row_id": "f3", "image": png(), "query": f"unbearable {WORD}"}]


def test_the_metrics_file_of_the_worker_has_the_counts_of_the_run(observed: ObservedRuns) -> None:
    summary = json.loads(observed.stdout)
    files = {
        path.name: sample_sums(path.read_text()) for path in (observed.folder / "metrics").iterdir()
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
        for path in (observed.folder / "out" / kind).iterdir()
    )
    assert found["wordmask_written_bytes_total", ""] == written
    assert found["wordmask_peak_memory_bytes", ""] > 50e6
    assert found["wordmask_shards_begun", ""] == 0
    assert files["wordmask-run.prom"]["wordmask_shards_waiting", ""] == 0


def test_logs_of_flow_and_workers_name_run_shard_and_row(observed: ObservedRuns) -> None:
    summary, records = json.loads(observed.stdout), observed.records
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
        row["row_id"]: row["code"] for row in read_rows(observed.folder / "out", "rejects")
    }
    assert {record["shard_id"] for record in rejects.values()} <= published_ids(
        observed.folder / "out"
    )
    second = [record for record in records if record["run_id"] != summary["run_id"]]
    assert [record["message"] for record in second] == ["planned", "shard failed", "shard given up"]
    assert "MemoryError" in second[1]["traceback"]


def spans_of(bodies: Sequence[bytes]) -> list[Span]:
    requests = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    resources = [resource for request in requests for resource in request.resource_spans]
    scopes = [scope for resource in resources for scope in resource.scope_spans]
    return [span for scope in scopes for span in scope.spans]


def test_traces_of_flow_and_workers_are_one_for_each_run(observed: ObservedRuns) -> None:
    summary = json.loads(observed.stdout)
    spans = spans_of(observed.traces)
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

    def ancestors(span: Span) -> list[str]:
        names = []
        while (parent := by_id.get(span.parent_span_id)) is not None:
            names.append(parent.name)
            span = parent
        return names

    for span in ours:
        if span.name in ("read", "infer", "write"):
            assert ancestors(span)[0] == "shard"
        elif span.name == "shard":
            assert "run" in ancestors(span)
    shards = [{a.key: a.value for a in span.attributes} for span in ours if span.name == "shard"]
    done = [
        shard["shard_id"].string_value
        for shard in shards
        if shard["run_id"].string_value == summary["run_id"]
    ]
    assert len(done) == summary["shards"]
    assert set(done) == published_ids(observed.folder / "out")
    failed = [span for span in ours if span.status.code == Status.StatusCode.STATUS_CODE_ERROR]
    assert sorted(span.name for span in failed) == ["infer", "run", "shard"]


def prefect_database() -> bytes:
    """Return all that Prefect keeps: logs, states, artifacts."""
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    assert url is not None
    path = Path(url.get_secret_value().split("///", 1)[1])
    return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))


def test_no_credential_and_no_query_or_image_is_in_logs_metrics_traces_or_prefect(
    observed: ObservedRuns,
) -> None:
    """Everything is searched, beside the columns of the tables that are the rows' own."""
    kept = prefect_database().decode(errors="replace")
    assert "ShardsFailedError" in kept, "Prefect keeps its records elsewhere"
    texts = {"stdout": observed.stdout, "stderr": observed.stderr, "Prefect": kept}
    for number, body in enumerate(observed.traces):
        texts[f"trace {number}"] = body.decode(errors="replace")
    for path in observed.folder.rglob("*"):
        if path.suffix in (".json", ".prom"):
            texts[path.name] = path.read_text()
    tables = {
        path.name: pq.read_table(path).to_pylist()
        for kind in ("masks", "rejects")
        for path in (observed.folder / "out" / kind).iterdir()
    }
    shown = {name: repr(rows) for name, rows in tables.items()}
    assert not [name for name, text in (texts | shown).items() if SECRET.search(text)]
    details = {name: repr([row.get("detail") for row in rows]) for name, rows in tables.items()}
    assert not [name for name, text in (texts | details).items() if CONTENT.search(text)]
    uris = {
        row["row_id"]: row["image_uri"] for row in read_rows(observed.folder / "out", "rejects")
    }
    expected = "https://images.example/a.png?X-Amz-Signature=***"
    assert uris["bad0"] == expected, "what is left of a presigned URI says which image it was"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{PASSWORD}@lake/in.parquet",
        f"https://host/in.parquet?X-Amz-Signature={SIGNATURE}",
    ],
)
def test_the_command_takes_no_credentials_and_does_not_print_them(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["wordmask", "plan", uri, "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "holds a password, a signature" in printed.err
    assert not SECRET.search(printed.err + printed.out)


def test_dask_serves_the_metrics_of_a_run(tmp_path: Path) -> None:
    rows = [{"row_id": f"r{i}", "image": png(i), "query": f"thing {i}"} for i in range(9)]
    for row in rows[::4]:
        row["query"] = ""
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
        settings = settings.model_copy(update={"scheduler": standing.scheduler_address})
        with open_cluster(settings, plan.shards[0].model_revision, FACTORY) as client:
            (worker,) = client.scheduler_info()["workers"].values()
            address = f"http://127.0.0.1:{worker['services']['dashboard']}/metrics"
            before = sample_sums(fetch(address))
            Dispatcher(client, settings, receipts.append).run(plan.pending)
            found = sample_sums(fetch(address))
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
