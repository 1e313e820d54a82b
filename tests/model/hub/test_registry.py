"""Models are found by name, named by content, and refused with a remedy."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError

from tests.support.tiny import assert_same_outputs, tiny_model
from wordmask.model.decoding.tokenizer import build_tokenizer
from wordmask.model.hub import registry
from wordmask.model.hub.cards import list_models
from wordmask.model.hub.registry import ModelError, resolve_model, weight_files
from wordmask.model.loading import load_model, load_tokenizer

COMMIT, REFINER_COMMIT, TOKENIZER_COMMIT = "1" * 40, "2" * 40, "3" * 40


def make_folder(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    written = {"config_json": "{}", "tokenizer_json": "{}", "model_safetensors": "weights", **files}
    for name, content in written.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(content)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache(hub: Path, name: str, commit: str, branch: str = "main") -> Path:
    """The folder of a repository's snapshot in the cache, as the hub's client lays it out."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    return snapshot


def test_a_local_folder_is_named_by_its_content(tmp_path):
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    revision = resolve_model(str(first)).revision
    assert len(revision) == 16
    assert int(revision, 16) >= 0
    assert resolve_model(str(second)).revision == revision


@pytest.mark.parametrize("changed", ["config_json", "model_safetensors", "tokenizer_json"])
def test_each_file_that_decides_results_changes_the_revision(tmp_path, changed):
    before = resolve_model(str(make_folder(tmp_path))).revision
    assert resolve_model(str(make_folder(tmp_path, **{changed: "other"}))).revision != before


def test_files_that_decide_nothing_do_not_change_the_revision(tmp_path):
    before = resolve_model(str(make_folder(tmp_path))).revision
    assert (
        resolve_model(str(make_folder(tmp_path, card_json="{}", README_md="hello"))).revision
        == before
    )


def test_content_moved_between_files_changes_the_revision(tmp_path):
    one = resolve_model(
        str(make_folder(tmp_path / "a", config_json="ab", model_safetensors="c"))
    ).revision
    assert (
        resolve_model(
            str(make_folder(tmp_path / "b", config_json="a", model_safetensors="bc"))
        ).revision
        != one
    )


def test_every_shard_counts(tmp_path):
    index = json.dumps(
        {"weight_map": {"x": "s1.safetensors", "y": "s2.safetensors", "z": "s1.safetensors"}}
    )
    shards = {"s1_safetensors": "1", "s2_safetensors": "2"}
    folder = make_folder(tmp_path, **{"model.safetensors.index_json": index}, **shards)
    (folder / "model.safetensors").unlink()
    assert [file.name for file in weight_files(folder)] == ["s1.safetensors", "s2.safetensors"]
    before = resolve_model(str(folder)).revision
    (folder / "s2.safetensors").write_text("3")
    assert resolve_model(str(folder)).revision != before


def test_a_single_file_is_a_model_with_the_configuration_beside_it(tmp_path):
    folder = make_folder(tmp_path, model_fp8_pt="small weights")
    source = resolve_model(str(folder / "model_fp8.pt"))
    assert source.model.weights() == (folder / "model_fp8.pt",)
    assert source.model.folder() == folder
    assert source.revision != resolve_model(str(folder)).revision


def test_the_configuration_of_a_repository_is_downloaded_without_its_weights(hub):
    (cache(hub, "some/model", COMMIT) / "config.json").write_text("{}")
    assert (resolve_model("some/model").model.config_folder() / "config.json").read_text() == "{}"


def test_the_refiner_has_a_part_of_the_revision(tmp_path):
    folder, refiner = make_folder(tmp_path / "a"), tmp_path / "r"
    refiner.mkdir()
    (refiner / "model.pt").write_text("head")
    alone, both = resolve_model(str(folder)), resolve_model(str(folder), refiner=str(refiner))
    assert both.revision == f"{alone.revision}+{both.refiner.revision}"
    assert both.refiner.weights() == (refiner / "model.pt",)


def test_a_revision_asked_for_must_be_the_content(tmp_path):
    folder = make_folder(tmp_path)
    revision = resolve_model(str(folder)).revision
    assert resolve_model(str(folder), revision=revision).revision == revision
    both = resolve_model(str(folder), refiner=str(folder)).revision
    assert resolve_model(str(folder), refiner=str(folder), revision=both).revision == both
    (folder / "model.safetensors").write_text("retrained")
    with pytest.raises(
        ModelError, match=rf"its content is [0-9a-f]{{16}}, not {revision} as asked"
    ):
        resolve_model(str(folder), revision=revision)


def test_a_source_travels_to_workers(tmp_path):
    source = resolve_model(str(make_folder(tmp_path)))
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    "name", ["no-such-model", "a/b/c", "./missing/folder", "/nowhere", "", "~~"]
)
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(
        ModelError, match="no such folder or file, and no hub repository is named so; give `demo`"
    ):
        resolve_model(name)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no weights; expected model\.safetensors"):
        resolve_model(str(tmp_path))


def test_two_weight_files_are_not_chosen_between(tmp_path):
    (tmp_path / "a.pt").write_text("1")
    (tmp_path / "b.pt").write_text("2")
    with pytest.raises(ModelError, match=r"holds a\.pt, b\.pt; name the file"):
        resolve_model(str(tmp_path))


def test_safetensors_are_preferred_to_pickles(tmp_path):
    folder = make_folder(tmp_path, model_pt="pickle", other_safetensors="adapter")
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "gone.safetensors"}})
    )
    with pytest.raises(ModelError, match=r"lists shards that are not there: gone\.safetensors"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": [1]}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="is no index of safetensors shards"):
        resolve_model(str(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("x")
    with pytest.raises(ModelError, match=r"is a \.onnx file; weights end in \.safetensors or \.pt"):
        resolve_model(str(tmp_path / "model.onnx"))


def test_a_cached_repository_is_named_by_its_commit(hub):
    make_folder(cache(hub, "some/model", COMMIT))
    source = resolve_model("some/model")
    assert source.revision == COMMIT
    assert source.model.path is None
    assert [file.name for file in source.model.weights()] == ["model.safetensors"]


def test_branches_of_a_repository_are_told_apart(hub):
    make_folder(cache(hub, "some/model", COMMIT))
    make_folder(cache(hub, "some/model", REFINER_COMMIT, branch="next"))
    assert resolve_model("some/model", revision="next").revision == REFINER_COMMIT
    assert resolve_model("some/model", revision=COMMIT).revision == COMMIT


def test_a_source_keeps_its_commit_when_the_branch_moves_on(hub):
    make_folder(cache(hub, "some/model", COMMIT), model_safetensors="old")
    source = resolve_model("some/model")
    make_folder(cache(hub, "some/model", REFINER_COMMIT), model_safetensors="new")
    assert source.model.weights()[0].read_text() == "old"
    assert resolve_model("some/model").model.weights()[0].read_text() == "new"
    assert resolve_model("some/model", revision=source.revision).revision == source.revision


def test_model_refiner_and_tokenizer_of_the_hub_load(hub):
    reference = tiny_model()
    reference.save_pretrained(cache(hub, "some/model", COMMIT))
    torch.save(
        {"head": reference.head.state_dict()},
        cache(hub, "some/refiner", REFINER_COMMIT) / "model.pt",
    )
    tokenizer = build_tokenizer(["red"])
    save_published_tokenizer(hub, tokenizer, TOKENIZER_COMMIT)
    source = resolve_model("some/model", refiner="some/refiner")
    assert source.revision == f"{COMMIT}+{REFINER_COMMIT}~{TOKENIZER_COMMIT}"
    assert_same_outputs(load_model(source), reference)
    assert load_tokenizer(source).encode("red") == tokenizer.encode("red", add_special_tokens=False)


def save_published_tokenizer(hub: Path, tokenizer: Any, commit: str) -> None:
    folder = cache(hub, "moondream/starmie-v1", commit)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_the_planned_tokenizer_is_loaded_also_where_its_branch_moved_on(hub, tmp_path, place):
    name = "some/model" if place == "hub" else str(tmp_path / "own")
    folder = cache(hub, name, COMMIT) if place == "hub" else tmp_path / "own"
    (make_folder(folder) / "tokenizer.json").unlink()
    old, new = build_tokenizer(["red red red"]), build_tokenizer(["blue blue blue"])
    save_published_tokenizer(hub, old, "3" * 40)
    planned = resolve_model(name).revision
    save_published_tokenizer(hub, new, "4" * 40)
    assert resolve_model(name).revision != planned
    on_worker = resolve_model(name, revision=planned)
    assert on_worker.revision == planned
    ids = load_tokenizer(on_worker).encode("red")
    assert ids == old.encode("red", add_special_tokens=False)
    assert ids != new.encode("red", add_special_tokens=False)


def test_a_model_with_a_tokenizer_of_its_own_asks_for_no_other(hub):
    make_folder(cache(hub, "some/model", COMMIT))
    source = resolve_model("some/model")
    assert (source.tokenizer, source.revision) == (None, COMMIT)
    assert source.tokenizer_file().read_text() == "{}"


def test_offline_without_a_cache_says_what_to_do(hub):
    with pytest.raises(ModelError, match=r"some/model.*hf auth login.*or give a local folder"):
        resolve_model("some/model")


def test_a_gated_repository_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        request = httpx2.Request("GET", "https://huggingface.co/x")
        raise GatedRepoError(
            "Access is restricted.\nMore lines", response=httpx2.Response(403, request=request)
        )

    monkeypatch.setattr(registry, "snapshot_download", refuse)
    with pytest.raises(ModelError) as error:
        resolve_model("moondream/moondream3-preview", revision="main")
    message = str(error.value)
    assert "'moondream/moondream3-preview' at main" in message
    assert (
        "accept its licence at https://huggingface.co/moondream/moondream3-preview and run `hf auth"
        " login`" in message
    )
    assert "GatedRepoError: Access is restricted.)" in message


def test_only_what_is_needed_is_downloaded(hub, monkeypatch, tmp_path):
    asked: list[tuple[str, ...]] = []

    def download(name: str, allow_patterns: list[str], **options: object) -> str:
        asked.append(tuple(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(registry, "snapshot_download", download)
    source = resolve_model("some/model")
    assert asked == [("config.json", "tokenizer.json")]
    make_folder(tmp_path)
    source.model.weights()
    assert asked[1:] == [("*.json", "*.safetensors")]
    (tmp_path / "model.safetensors").rename(tmp_path / "model.pt")
    assert [file.name for file in source.model.weights()] == ["model.pt"]
    assert asked[2:] == [("*.json", "*.safetensors"), ("*.json", "*.pt")]


@pytest.fixture
def no_assets(tmp_path, monkeypatch) -> Path:
    """A demo folder of the test's own in place of the package's."""
    folder = tmp_path / "demo"
    folder.mkdir()
    monkeypatch.setattr(registry, "demo_folder", lambda: folder)
    return folder


def test_an_installation_without_demo_weights_says_so(no_assets):
    with pytest.raises(
        ModelError,
        match="this installation has no weights in model/assets/demo; name another model",
    ):
        resolve_model("demo")
    assert [card.name for card in list_models()] == ["moondream/moondream3-preview"]


def test_the_demo_is_found_wherever_the_package_is(no_assets):
    tiny_model().save_pretrained(no_assets)
    source = resolve_model("demo")
    assert (source.name, source.model.path) == ("demo", no_assets)
    assert_same_outputs(load_model(source), tiny_model())


def test_the_demos_card_is_read(no_assets):
    make_folder(no_assets, model_safetensors="1234")
    card = {
        "description": "small",
        "trained_on": "scenes",
        "parameters": 7,
        "seed": 3,
        "steps": {"box": 10},
    }
    (no_assets / "card.json").write_text(json.dumps(card | {"results": {"test scenes, mIoU": 0.5}}))
    demo = list_models()[0]
    assert (demo.name, demo.size_bytes, demo.results) == ("demo", 4, {"test scenes, mIoU": 0.5})
    assert (demo.seed, demo.steps, demo.parameters) == (3, {"box": 10}, 7)


@pytest.mark.parametrize("content", ["{", '{"colour": 1}', "[]"])
def test_a_damaged_card_is_named(no_assets, content):
    (make_folder(no_assets) / "card.json").write_text(content)
    with pytest.raises(ModelError, match=r"card\.json: is no model card"):
        list_models()


def test_the_published_model_is_listed_with_its_sources_and_as_not_measured_here():
    card = list_models()[-1]
    assert card.name == "moondream/moondream3-preview"
    assert "gated" in card.description
    assert "moondream/SegHeadRefiner" in card.description
    published = {"RefCOCO val, cIoU %": 80.2, "RefCOCO-M, mIoU %": 88.2}
    assert published.items() <= card.results.items()
    assert "arXiv 2604.02593" in card.results_source
    assert "not measured here" in card.results_source


def test_finding_a_model_needs_no_torch(tmp_path):
    """Planning runs where no model does, and starts fast."""
    make_folder(tmp_path)
    code = (
        "import sys; from wordmask.model.hub.cards import list_models; "
        "from wordmask.model.hub.registry import resolve_model; "
        f"list_models(); resolve_model({str(tmp_path)!r}); "
        "sys.exit(bool({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
