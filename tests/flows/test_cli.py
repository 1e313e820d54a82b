"""The command line, by running it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.commands import WORDMASK, wordmask
from tests.support.tables import read_rows
from wordmask.model.masks import rle
from wordmask.model.scenes.splits import SPLITS, TEST_SEEDS, TRAIN_SEEDS
from wordmask.model.scenes.sprites import fetched_path, load_shipped, save


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, own_api: dict[str, str]) -> Path:
    """A folder with scenes.parquet and a finished run of the default model over it in masks/."""
    folder = tmp_path_factory.mktemp("run")
    wordmask("scenes", folder / "scenes.parquet", "--count", 24, "--seed", 5)
    ran = wordmask("run", folder / "scenes.parquet", folder / "masks", "--json", **own_api)
    assert ran.stderr == "", "no noise of Prefect's, Dask's or a library's"
    summary = json.loads(ran.stdout)
    assert (summary["rows"], summary["masks"], summary["rejects"]) == (24, 24, {})
    return folder


def test_help_is_there_for_every_command() -> None:
    assert "Words in, masks out" in wordmask("--help").stdout
    commands = (
        "segment",
        "run",
        "plan",
        "status",
        "models",
        "evaluate",
        "scenes",
        "sheet",
        "verify",
        "rejects",
        "retry",
        "gc",
        "schedule",
    )
    for command in (*commands, "import coco", "train scenes", "train run"):
        assert "Example" in wordmask(*command.split(), "--help").stdout


def test_training_scenes_say_what_they_are_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "wordmask train scenes --fetch" in wordmask("train", "scenes", code=2).stderr
    assert "needs npm" in wordmask("train", "scenes", "--fetch", code=1, PATH=str(tmp_path)).stderr
    save(load_shipped(), fetched_path())
    found = json.loads(wordmask("train", "scenes", "--json").stdout)
    assert (found["path"], found["nouns"], found["sprites"]) == (str(fetched_path()), 36, 108)
    assert {style["name"]: style["licence"] for style in found["styles"]} == {
        "noto": "Apache-2.0",
        "noto-v1": "Apache-2.0",
        "twemoji": "CC-BY-4.0",
    }
    assert "CC-BY-4.0" in wordmask("train", "scenes").stdout


def test_scenes_of_things_come_from_the_seeds_of_their_split(tmp_path: Path) -> None:
    wordmask(
        "scenes",
        tmp_path / "a.parquet",
        "--count",
        3,
        "--split",
        "test-style",
        "--sprites",
        "shipped",
    )
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert all(int(row["row_id"].split("-")[0]) in SPLITS["test-style"].seeds for row in rows)


def test_scenes_come_from_test_seeds_with_their_truth(done: Path) -> None:
    rows = pq.read_table(done / "scenes.parquet").to_pylist()
    assert len({row["row_id"] for row in rows}) == 24
    for row in rows:
        seed = int(row["row_id"].split("-")[0])
        assert seed in TEST_SEEDS
        assert seed not in TRAIN_SEEDS
    n_present = sum(bool(rle.decode(row["mask"]).any()) for row in rows)
    assert 12 < n_present < 24, "some expressions name nothing in their scene"


def test_plan_and_status_know_what_is_done(done: Path) -> None:
    fresh = json.loads(
        wordmask("plan", done / "scenes.parquet", done / "elsewhere", "--json").stdout
    )
    assert (fresh["rows"], fresh["rows_pending"]) == (24, 24)
    planned = json.loads(wordmask("plan", done / "scenes.parquet", done / "masks", "--json").stdout)
    assert (planned["rows_done"], planned["shards_pending"], planned["estimate"]) == (24, 0, None)
    found = json.loads(wordmask("status", done / "masks", "--json").stdout)
    assert len(found["runs"]) == found["shards"] == 1
    assert "24" in wordmask("status", done / "masks").stdout


def test_plan_tells_the_time_from_receipts_and_says_where_there_are_none(done: Path) -> None:
    plan = ("plan", done / "scenes.parquet")
    assert (
        json.loads(wordmask(*plan, done / "elsewhere", "--json").stdout)["estimate"]["basis"]
        == "nothing"
    )
    cut_otherwise = (*plan, done / "masks", "--shard-rows", 5)
    found = json.loads(wordmask(*cut_otherwise, "--json").stdout)["estimate"]
    assert (found["basis"], found["receipts"]) == ("receipts", 1)
    assert found["rates"][0]["seconds"] * found["rates"][0]["rows_per_second"] == pytest.approx(24)
    assert "rows/s" in wordmask(*cut_otherwise).stdout
    in_budget = json.loads(wordmask(*cut_otherwise, "--budget", "1h", "--json").stdout)
    assert in_budget["nights"]["nights"] == 1


def test_plan_can_time_a_few_shards_and_show_a_few_rows(tmp_path: Path) -> None:
    wordmask("scenes", tmp_path / "scenes.parquet", "--count", 8)
    plan = (
        "plan",
        tmp_path / "scenes.parquet",
        tmp_path / "out",
        "--shard-rows",
        2,
        "--price-per-hour",
        3.6,
        "--workers",
        1,
    )
    ran = wordmask(*plan, "--calibrate", "--preview", 2, "--json", OMP_NUM_THREADS="1")
    assert ran.stderr == ""
    found = json.loads(ran.stdout)
    assert (found["rows_calibrated"], found["rows_done"], found["rows_new"]) == (6, 6, 2)
    (rate,) = found["estimate"]["rates"]
    assert (found["estimate"]["basis"], found["estimate"]["receipts"]) == ("calibration", 3)
    assert rate["cost"] == pytest.approx(rate["seconds"] / 1000)
    assert found["preview"]["sheet"] == str(tmp_path / "out-preview.png")
    assert Image.open(tmp_path / "out-preview.png").width > 600
    assert len(found["preview"]["rows"]) == 2
    assert not (tmp_path / "out/runs").exists()
    assert "$" in wordmask(*plan).stdout


def test_plan_names_files_that_a_run_refuses(tmp_path: Path) -> None:
    for name, column in (("good", "query"), ("wrong", "words")):
        pq.write_table(pa.table({"image": ["a.png"], column: ["x"]}), tmp_path / f"{name}.parquet")
    planned = wordmask("plan", tmp_path, tmp_path / "out")
    assert "a run refuses this input: wrong.parquet: no column 'query'" in planned.stderr
    found = json.loads(wordmask("plan", tmp_path, tmp_path / "out", "--json").stdout)
    assert (found["rows"], found["rows_invalid"], [file["name"] for file in found["unusable"]]) == (
        2,
        1,
        ["wrong.parquet"],
    )
    assert "wrong.parquet" in wordmask("run", tmp_path, tmp_path / "out", code=2).stderr


def test_bad_files_are_skipped_where_that_is_asked_for_and_all_is_told(
    tmp_path: Path, shared_api: dict[str, str]
) -> None:
    wordmask("scenes", tmp_path / "in/good.parquet", "--count", 2)
    (tmp_path / "in/bad.parquet").touch()
    (tmp_path / "in/notes.txt").touch()
    command = [tmp_path / "in", tmp_path / "out", "--skip-bad-files"]
    planned = wordmask("plan", *command)
    ran = wordmask("run", *command, **shared_api)
    for told in (planned.stderr, ran.stderr):
        assert "a file that cannot be used: input bad.parquet: not a readable Parquet" in told
        assert "not read: 1 file, no tables by their names (.txt): notes.txt" in told
    (run,) = json.loads(wordmask("status", tmp_path / "out", "--json").stdout)["runs"]
    assert run["rows"] == 2
    assert [file["name"] for file in run["skipped"]] == ["bad.parquet"]
    assert run["left_out"][0]["names"] == ["notes.txt"]


def test_the_default_model_writes_the_same_bytes_again(
    done: Path, tmp_path: Path, shared_api: dict[str, str]
) -> None:
    wordmask("run", done / "scenes.parquet", tmp_path / "again", **shared_api)
    for kind in ("masks", "rejects"):
        parts = {part.name: part.read_bytes() for part in (done / "masks" / kind).iterdir()}
        assert parts
        assert parts == {
            part.name: part.read_bytes() for part in (tmp_path / "again" / kind).iterdir()
        }


def test_the_default_model_on_object_storage(s3: str, shared_api: dict[str, str]) -> None:
    table, output = f"{s3}/cli/scenes.parquet", f"{s3}/cli/masks"
    wordmask("scenes", table, "--count", 3)
    summary = json.loads(
        wordmask("run", table, output, "--json", "--workers", 1, **shared_api).stdout
    )
    assert (summary["rows"], summary["masks"]) == (3, 3)
    assert json.loads(wordmask("evaluate", output, table, "--json").stdout)["rows"] == 3


def test_a_store_that_cannot_be_reached_is_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials there
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "failed: " in wordmask("status", "s3://lake/out", code=1).stderr


def test_an_output_can_be_audited(done: Path) -> None:
    masks = done / "masks"
    assert json.loads(wordmask("verify", masks, "--json").stdout)["holds"] is True
    assert (
        "24 rows in 1 shard: every row is accounted for, once" in wordmask("verify", masks).stdout
    )
    assert json.loads(wordmask("rejects", masks, "--json").stdout) == []
    assert json.loads(wordmask("gc", masks, "--json").stdout)["named"]["paths"] == []
    assert "removed 0 files" in wordmask("gc", masks, "--delete").stdout


def test_evaluate_scores_the_default_model(done: Path) -> None:
    scores = json.loads(
        wordmask("evaluate", done / "masks", done / "scenes.parquet", "--json").stdout
    )
    assert scores["rows"] == scores["masks"] + scores["absent"] == 24
    assert scores["miou"] > 0.4, (
        "far below what the model reaches on 1,000 rows: something is broken"
    )


def test_sheet_is_a_picture(done: Path) -> None:
    wordmask("sheet", done / "masks", done / "sheet.png", "--count", 6)
    assert Image.open(done / "sheet.png").width > 600


def test_segment_one_image(done: Path, tmp_path: Path) -> None:
    masks = {
        mask["row_id"]: mask for mask in read_rows(done / "masks", "masks") if mask["area"] > 100
    }
    row = next(
        row for row in pq.read_table(done / "scenes.parquet").to_pylist() if row["row_id"] in masks
    )
    (tmp_path / "scene.png").write_bytes(row["image"]["bytes"])
    overlay = tmp_path / "over/lay.png"
    found = json.loads(
        wordmask(
            "segment", tmp_path / "scene.png", row["query"], "--overlay", overlay, "--json"
        ).stdout
    )
    assert found["mask"] == masks[row["row_id"]]["mask"], (
        "one image alone and the same in a table give the same mask"
    )
    assert cv2.imread(str(overlay)) is not None
    assert (
        "predicted iou"
        in wordmask("segment", tmp_path / "scene.png", row["query"], "--box", "0,0,1,1").stdout
    )


def test_models_say_what_they_were_trained_on() -> None:
    cards = {card["name"]: card for card in json.loads(wordmask("models", "--json").stdout)}
    assert "scenes" in cards["demo"]["trained_on"]
    assert cards["demo"]["size_bytes"] <= 25_000_000
    assert 9.2e9 < cards["moondream/moondream3-preview"]["parameters"] < 9.3e9


def test_costs_of_the_full_size_are_marked_as_an_estimate() -> None:
    found = json.loads(wordmask("models", "--costs", "--json").stdout)
    assert found["measured"] is False
    assert [stage["name"] for stage in found["stages"]] == [
        "encode",
        "prefill",
        "prompt",
        "decode",
        "refine",
    ]
    table = wordmask("models", "--costs").stdout
    assert "an estimate, at 50% of the data sheets' peaks (assumed), never measured here" in table
    for gpu in ("H100", "A100", "L4"):
        assert sum(line.strip().startswith(gpu) for line in table.splitlines()) == 2, (
            "at 1 and 8 queries per image"
        )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run nowhere.parquet out", "no Parquet file"),
        ("plan nowhere.parquet out", "no Parquet file"),
        ("plan scenes.parquet out --model no/such/model", "no/such/model"),
        ("plan scenes.parquet out --query-column words", "--query-column"),
        ("run nowhere.parquet out --workers 0", "--workers"),
        ("segment nowhere.png x", "nowhere.png"),
        ("plan gs://bucket/in.parquet out", "gcsfs"),
        ("scenes masks --count 1", "masks: is a folder"),
        ("segment broken.png x", "broken.png: not JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"),
        ("evaluate nowhere truth.parquet", "no published run"),
        ("sheet nowhere sheet.png", "no published run"),
        ("scenes a.parquet --count 0", "--count"),
        ("retry masks --code nonsense", "--code nonsense: must be one of"),
        ("run nowhere.parquet out --budget 2", "--budget 2: must be a time such as 30m"),
        ("schedule a b --budget $40 --price-per-hour inf", "budget_seconds = 0.0: Input should be"),
        ("verify nowhere", "no published run"),
        ("schedule scenes.parquet out --workers 0", "--workers"),
        ("import coco nowhere.json --images . a.parquet", "nowhere.json"),
        ("import coco broken.png --images . a.parquet", "broken.png: not JSON"),
        ("evaluate masks broken.png", "broken.png: not a readable Parquet file"),
    ],
)
def test_errors_are_one_message(
    words: str, says: str, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done)
    (done / "broken.png").write_text("so")
    failed = wordmask(*words.split(), code=2)
    assert says in failed.stderr
    assert failed.stdout == ""


def test_a_run_that_fails_says_so_with_another_exit_code(
    done: Path, tmp_path: Path, shared_api: dict[str, str]
) -> None:
    failed = wordmask(
        "run",
        done / "scenes.parquet",
        tmp_path / "out",
        "--scheduler",
        "nonsense://x",
        code=1,
        **shared_api,
    )
    assert "failed: --scheduler nonsense://x: no Dask scheduler answers there" in failed.stderr


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    done: Path, tmp_path: Path, own_api: dict[str, str], shared_api: dict[str, str]
) -> None:
    pq.write_table(pq.read_table(done / "scenes.parquet").slice(0, 8), done / "few.parquet")
    command = [
        str(WORDMASK),
        "run",
        "few.parquet",
        str(tmp_path / "out"),
        "--shard-rows",
        "1",
        "--workers",
        "1",
    ]
    running = subprocess.Popen(
        command,
        cwd=done,
        env=os.environ | own_api,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any(tmp_path.glob("out/receipts/*.json")):
        assert running.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0.05)
    os.killpg(
        running.pid, signal.SIGINT
    )  # as a terminal does: the workers and Prefect's server get it too
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert (
        stderr.splitlines()[-1]
        == "stopped: what is done has its receipts, and the same command takes up the rest"
    )
    assert "Traceback" not in stderr
    assert stdout == ""
    summary = json.loads(wordmask(*command[1:], "--json", cwd=done, **shared_api).stdout)
    assert summary["rows"] == summary["masks"] == 8
    assert 0 < summary["shards_computed"] < 8


def test_a_spatial_reference_that_is_none(done: Path, tmp_path: Path) -> None:
    row = pq.read_table(done / "scenes.parquet").to_pylist()[0]
    (tmp_path / "scene.png").write_bytes(row["image"]["bytes"])
    assert (
        "2 numbers"
        in wordmask("segment", tmp_path / "scene.png", "x", "--point", "0.5", code=2).stderr
    )
    assert (
        "0..1"
        in wordmask("segment", tmp_path / "scene.png", "x", "--point", "0.5,7", code=2).stderr
    )
    assert "has no words" in wordmask("segment", tmp_path / "scene.png", " ", code=2).stderr
