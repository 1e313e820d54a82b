"""From a folder to a model: configuration, weights of every layout, device, dtype, sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tests.support.layout_b import fuse_tau, quantise_experts, to_layout_b
from tests.support.tiny import (
    REFINER,
    REGION,
    TEXT,
    VISION,
    assert_same_outputs,
    outputs,
    tiny_config,
    tiny_model,
)
from wordmask.model.decoding.tokenizer import build_tokenizer
from wordmask.model.hub.cards import list_models
from wordmask.model.hub.checkpoints import CheckpointError
from wordmask.model.hub.registry import ModelError, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moondream import MoondreamSegmentation, build_on_meta, parameter_count


@pytest.fixture(scope="module")
def reference() -> MoondreamSegmentation:
    return tiny_model()


@pytest.fixture
def folder(reference, tmp_path) -> Path:
    """As `save_pretrained` leaves it: config.json and model.safetensors."""
    reference.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def published(reference, tmp_path) -> tuple[Path, Path]:
    """A model folder and a refiner folder as they are published.

    They have another model_type, nested sections, and no head.
    """
    model_folder, refiner_folder = tmp_path / "published", tmp_path / "refiner"
    model_folder.mkdir()
    refiner_folder.mkdir()
    (model_folder / "config.json").write_text(json.dumps(published_config()))
    state = reference.state_dict()
    save_file(
        {name: t for name, t in state.items() if name.startswith("model.")},
        model_folder / "model.safetensors",
    )
    torch.save({"head": reference.head.state_dict()}, refiner_folder / "model.pt")
    return model_folder, refiner_folder


def published_config() -> dict:
    sections = {
        "vision": VISION,
        "text": TEXT | {"group_size": None},
        "region": REGION | {"group_size": None},
        "refiner": REFINER,
    }
    return {
        "architectures": ["HfMoondream"],
        "auto_map": {"AutoModelForCausalLM": "hf_moondream.HfMoondream"},
        "model_type": "moondream3",
        "torch_dtype": "bfloat16",
        "config": (
            sections
            | {
                "skills": ["query", "segment"],
                "tokenizer": {"bos_id": 0, "coord_id": 5, "answer_id": 3},
            }
        ),
    }


def test_save_pretrained_and_from_pretrained_round_trip(reference, folder):
    found = MoondreamSegmentation.from_pretrained(folder)
    assert_same_outputs(found, reference)
    for section in ("vision", "text", "region", "refiner", "tokens"):
        assert getattr(found.config, section) == getattr(reference.config, section)
    assert not found.training


def test_shards_written_by_save_pretrained_load_back(reference, tmp_path):
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_outputs(MoondreamSegmentation.from_pretrained(tmp_path), reference)
    assert_same_outputs(load_model(resolve_model(str(tmp_path))), reference)


def test_bfloat16_on_disk_runs_in_float32_and_in_bfloat16(tmp_path):
    stored = tiny_model().to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    wide = MoondreamSegmentation.from_pretrained(tmp_path, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert_same_outputs(wide, tiny_model().to(torch.bfloat16).float())
    assert_same_outputs(load_model(resolve_model(str(tmp_path))), wide)
    assert_same_outputs(load_model(resolve_model(str(tmp_path)), dtype=torch.bfloat16), stored)
    assert_same_outputs(
        MoondreamSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16), stored
    )


def test_bfloat16_forward_is_near_float32(reference):
    exact, rough = outputs(reference), outputs(tiny_model().to(torch.bfloat16))
    for name, value in exact.items():
        # Residual streams of random models are rough ground: the scale of the error is what is
        # checked.
        error = (rough[name].float() - value).norm() / value.norm()
        assert error < 0.05, (name, error.item())
    assert rough["logits"].dtype == torch.float32
    assert rough["masks"].dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["meta", torch.device("meta"), {"": "meta"}])
def test_device_map_puts_the_model_where_it_says(folder, device_map):
    assert (
        MoondreamSegmentation.from_pretrained(folder, device_map=device_map).device.type == "meta"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_by_name_or_object(folder, dtype):
    assert MoondreamSegmentation.from_pretrained(folder, dtype=dtype).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_dtype_is_the_configurations_unless_given(tmp_path, dtype):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert MoondreamSegmentation.from_pretrained(tmp_path, dtype=dtype).dtype == torch.bfloat16


def test_transformers_own_loader_with_its_other_options(reference, folder, published):
    """Weights are compared, not outputs: last bits depend on how a mapped file is aligned."""
    model_folder, refiner_folder = published
    whole, info = MoondreamSegmentation.from_pretrained(folder, output_loading_info=True)
    parts, _ = MoondreamSegmentation.from_pretrained(
        model_folder, refiner=str(refiner_folder), dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    for name, tensor in reference.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor), name
        assert torch.equal(parts.state_dict()[name], tensor), name


def through_transformers(path: str) -> MoondreamSegmentation:
    return MoondreamSegmentation.from_pretrained(path, output_loading_info=True)[0]


LOADERS = [
    lambda path: load_model(resolve_model(path)),
    MoondreamSegmentation.from_pretrained,
    through_transformers,
]


def test_load_model_of_a_folder(reference, folder):
    found = load_model(resolve_model(str(folder)))
    assert_same_outputs(found, reference)
    assert not found.training


def test_load_model_of_a_single_file_takes_the_configuration_beside_it(reference, folder):
    (folder / "other.safetensors").write_bytes(b"not to be read")
    assert_same_outputs(load_model(resolve_model(str(folder / "model.safetensors"))), reference)


def test_published_folder_with_its_refiner(reference, published):
    model_folder, refiner_folder = map(str, published)
    assert_same_outputs(load_model(resolve_model(model_folder, refiner=refiner_folder)), reference)
    found = MoondreamSegmentation.from_pretrained(
        model_folder, refiner=refiner_folder, dtype=torch.float32
    )
    assert_same_outputs(found, reference)
    assert found.config.tokens.coord_id == 5


@pytest.mark.parametrize("load", LOADERS, ids=["load_model", "from_pretrained", "transformers"])
def test_published_folder_without_a_refiner_is_an_error(published, load):
    with pytest.raises(
        CheckpointError, match=r"missing: head\..*--refiner moondream/SegHeadRefiner"
    ):
        load(str(published[0]))


@pytest.mark.parametrize("form", ["safetensors", "fused", "fp8"])
def test_layout_b_through_load_model_and_from_pretrained(published, reference, form):
    model_folder, refiner_folder = published
    written = to_layout_b(dict(reference.state_dict()))
    (model_folder / "model.safetensors").unlink()
    if form == "fp8":
        torch.save(quantise_experts(fuse_tau(written)), model_folder / "model_fp8.pt")
    else:
        save_file(
            fuse_tau(written) if form == "fused" else written, model_folder / "model.safetensors"
        )
    loaded = load_model(resolve_model(str(model_folder), refiner=str(refiner_folder)))
    same = MoondreamSegmentation.from_pretrained(
        model_folder, refiner=str(refiner_folder), dtype=torch.float32
    )
    assert_same_outputs(same, loaded)
    if form == "fp8":
        assert not torch.equal(outputs(loaded)["logits"], outputs(reference)["logits"])
        assert torch.equal(outputs(loaded)["image"], outputs(reference)["image"])
    else:
        assert_same_outputs(loaded, reference)


@pytest.mark.parametrize("load", LOADERS, ids=["load_model", "from_pretrained", "transformers"])
def test_misfits_are_named_however_the_model_is_loaded(folder, reference, load):
    state = dict(reference.state_dict())
    del state["model.region.ln.bias"]
    state |= {"model.text.blocks.9.ln.bias": torch.zeros(32), "head.iou_token": torch.zeros(1, 31)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        load(str(folder))
    assert "1 tensor(s) missing: model.region.ln.bias" in str(error.value)
    assert "1 tensor(s) not part of the model: model.text.blocks.9.ln.bias" in str(error.value)
    assert "head.iou_token is (1, 31), expected (1, 32)" in str(error.value)
    assert str(folder) in str(error.value)


def test_a_folder_without_configuration_says_what_is_missing(folder):
    (folder / "config.json").unlink()
    with pytest.raises(
        ModelError,
        match=r"has no config\.json; give it the model's, or \{\} for the published full size",
    ):
        load_model(resolve_model(str(folder)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json"),
        (
            '{"model_type": "moondream_segmentation", "text": {"wheels": 4}}',
            "text: unknown field\\(s\\) wheels",
        ),
        ('{"config": {"text": {"moe": {"wheels": 4}}}}', "text.moe: unknown field\\(s\\) wheels"),
        (
            '{"config": {"vision": {"crop_size": 377}}}',
            "vision.crop_size = 377: must be a multiple of enc_patch_size",
        ),
    ],
)
def test_a_damaged_configuration_is_named(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(resolve_model(str(folder)))


def test_tokenizer_of_a_folder(folder):
    fast = build_tokenizer(["red", "circle"])
    Tokenizer.from_str(fast.backend_tokenizer.to_str()).save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(resolve_model(str(folder)))
    assert tokenizer.path_tokens(tokenizer.path_ids(["M", "960", "-", "0", "z"])) == [
        "M",
        "960",
        "-",
        "0",
        "z",
    ]
    assert tokenizer.encode("red circle") == fast.encode("red circle", add_special_tokens=False)


def expected_full_size() -> dict[str, tuple[int, ...]]:
    """Every name and shape of the published model in layout A (docs/model.md, Checkpoints)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inner: int, out: int) -> None:
        shapes.update({f"{name}.weight": (out, inner), f"{name}.bias": (out,)})

    def norm(name: str, dim: int) -> None:
        shapes.update({f"{name}.weight": (dim,), f"{name}.bias": (dim,)})

    linear("model.vision.patch_emb", 3 * 14 * 14, 1152)
    shapes["model.vision.pos_emb"] = (1, 729, 1152)
    for index in range(27):
        block = f"model.vision.blocks.{index}"
        norm(f"{block}.ln1", 1152)
        linear(f"{block}.attn.qkv", 1152, 3456)
        linear(f"{block}.attn.proj", 1152, 1152)
        norm(f"{block}.ln2", 1152)
        linear(f"{block}.mlp.fc1", 1152, 4304)
        linear(f"{block}.mlp.fc2", 4304, 1152)
    norm("model.vision.post_ln", 1152)
    linear("model.vision.proj_mlp.fc1", 2304, 8192)
    linear("model.vision.proj_mlp.fc2", 8192, 2048)

    shapes["model.text.wte"] = (51200, 2048)
    for index in range(24):
        block = f"model.text.blocks.{index}"
        norm(f"{block}.ln", 2048)
        linear(f"{block}.attn.qkv", 2048, 6144)
        linear(f"{block}.attn.proj", 2048, 2048)
        shapes |= {
            f"{block}.attn.tau.wq": (32, 6144),
            f"{block}.attn.tau.wv": (32, 6144),
            f"{block}.attn.tau.alpha": (32,),
        }
        if index < 4:
            linear(f"{block}.mlp.fc1", 2048, 8192)
            linear(f"{block}.mlp.fc2", 8192, 2048)
        else:
            linear(f"{block}.mlp.router", 2048, 64)
            shapes |= {
                f"{block}.mlp.fc1.weight": (64, 2048, 2048),
                f"{block}.mlp.fc2.weight": (64, 2048, 1024),
            }
    norm("model.text.post_ln", 2048)
    linear("model.text.lm_head", 2048, 51200)

    shapes |= {"model.region.coord_features": (1, 128), "model.region.size_features": (2, 256)}
    linear("model.region.coord_encoder", 256, 2048)
    linear("model.region.coord_decoder", 2048, 1024)
    linear("model.region.size_encoder", 512, 2048)
    linear("model.region.size_decoder", 2048, 2048)
    norm("model.region.ln", 2048)
    return shapes


def test_full_size_model_has_every_published_name_and_shape():
    model = build_on_meta(MoondreamSegmentationConfig())
    found = {
        name: tuple(t.shape) for name, t in model.state_dict().items() if name.startswith("model.")
    }
    assert found == expected_full_size()


def test_full_size_model_has_nine_billion_parameters():
    model = build_on_meta(MoondreamSegmentationConfig())
    count, counted = (
        parameter_count(model.model),
        sum(torch.Size(s).numel() for s in expected_full_size().values()),
    )
    print(
        f"full-size model: {count:,} parameters, with the refiner {parameter_count(model):,}"
        f" ({count / 1e9:.2f} B)"
    )
    assert count == counted == 9_268_626_928
    assert (
        parameter_count(model)
        == next(card for card in list_models() if card.name != "demo").parameters
    )
    # 8 of 64 experts are read for a token: about 2 B parameters are active.
    experts = sum(
        p.numel() for name, p in model.named_parameters() if ".mlp.fc" in name and p.ndim == 3
    )
    assert 1.8e9 < count - experts * 56 / 64 < 2.3e9


def test_full_size_model_fits_from_the_default_configuration_of_a_published_repository(tmp_path):
    """The published config.json leaves the sections out: an empty one stands for the full size."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moondream3", "config": {}}))
    config = MoondreamSegmentationConfig.from_pretrained(tmp_path)
    assert config.to_dict() == MoondreamSegmentationConfig().to_dict()
    assert config.text.moe.num_experts == 64


def test_tiny_config_differs_from_the_default_everywhere_it_matters():
    """Or a section that is not read back from JSON would go unseen in the tests above."""
    tiny, default = tiny_config(), MoondreamSegmentationConfig()
    assert all(
        getattr(tiny, name) != getattr(default, name)
        for name in ("vision", "text", "region", "refiner")
    )
