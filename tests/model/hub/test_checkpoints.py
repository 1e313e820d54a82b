"""Tiny checkpoints in every published form load back to the same outputs.

Anything that does not fit is named.
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.layout_b import fuse_tau, quantise_experts, to_layout_b
from tests.support.tiny import assert_same_outputs, tiny_config, tiny_model
from wordmask.model.hub import checkpoints
from wordmask.model.hub.checkpoints import CheckpointError, load_weights, rename
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moondream import MoondreamSegmentation, build_on_meta


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def load(
    *files: Path, refiner: Path | None = None, dtype: torch.dtype = torch.float32
) -> MoondreamSegmentation:
    found = build_on_meta(tiny_config())
    load_weights(found, files, refiner_files=(refiner,) if refiner else (), dtype=dtype)
    return found.eval()


@pytest.fixture(scope="module")
def reference() -> MoondreamSegmentation:
    return tiny_model()


@pytest.fixture(scope="module")
def state(reference: MoondreamSegmentation) -> dict[str, Tensor]:
    return dict(reference.state_dict())


@pytest.fixture
def refiner(state: dict[str, Tensor], tmp_path: Path) -> Path:
    head = {
        name.removeprefix("head."): tensor
        for name, tensor in state.items()
        if name.startswith("head.")
    }
    return write(tmp_path / "refiner.pt", {"head": head})


def vlm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_layout_a_in_one_file(reference, state, tmp_path, suffix):
    assert_same_outputs(load(write(tmp_path / f"model.{suffix}", state)), reference)


def test_layout_a_in_shards(reference, state, tmp_path):
    names = sorted(state)
    shards = [
        write(tmp_path / f"{k}.safetensors", {name: state[name] for name in names[k::3]})
        for k in range(3)
    ]
    assert_same_outputs(load(*shards), reference)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("fused", [False, True])
def test_layout_b(reference, state, refiner, tmp_path, suffix, fused):
    written = to_layout_b(state)
    written = fuse_tau(written) if fused else written
    assert any("tau_wqwv" in name for name in written) == fused
    assert_same_outputs(
        load(write(tmp_path / f"model.{suffix}", written), refiner=refiner), reference
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_fp8_experts_are_their_dequantised_weights(reference, state, refiner, tmp_path, suffix):
    quantised = quantise_experts(to_layout_b(state))
    expected = tiny_model()
    for layer, block in enumerate(expected.model.text.blocks):
        if hasattr(block.mlp, "router"):
            for ours, theirs, scale in (
                ("fc1", "experts", "up_scale"),
                ("fc2", "output_experts", "down_scale"),
            ):
                fp8 = quantised[f"text_model.transformer.h.{layer}.mlp.{theirs}.weight"]
                scale_EO = quantised[f"text_model.transformer.h.{layer}.moe_quant.{scale}"]
                rows = [
                    [fp8[e, o].float() * scale_EO[e, o] for o in range(fp8.shape[1])]
                    for e in range(fp8.shape[0])
                ]
                getattr(block.mlp, ours).weight.data = torch.stack(
                    [torch.stack(row) for row in rows]
                )
    found = load(write(tmp_path / f"model.{suffix}", quantised), refiner=refiner)
    assert_same_outputs(found, expected)
    # Quantising changed the weights, or this proves nothing; and it changed them little.
    change = (
        (found.model.text.blocks[1].mlp.fc1.weight - reference.model.text.blocks[1].mlp.fc1.weight)
        .abs()
        .max()
    )
    assert 0 < change < 0.05


@pytest.mark.parametrize("layout", ["a", "b"])
def test_orig_mod_parts_are_dropped(reference, state, refiner, tmp_path, layout):
    written = vlm(state) if layout == "a" else to_layout_b(state)
    compiled = {}
    for name, tensor in written.items():
        first, rest = name.split(".", 1)
        compiled[f"{first}._orig_mod.{rest}".replace(".mlp.", "._orig_mod.mlp.")] = tensor
    assert_same_outputs(
        load(write(tmp_path / "model.safetensors", compiled), refiner=refiner), reference
    )


@pytest.mark.parametrize(
    "shape", ["key", "key and prefix", "prefix", "bare", "compiled", "training state"]
)
def test_refiner_file_in_every_form(reference, state, tmp_path, shape):
    head = {
        name.removeprefix("head."): tensor
        for name, tensor in state.items()
        if name.startswith("head.")
    }
    prefixed = {f"head.{name}": tensor for name, tensor in head.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}
    forms = {
        "key": {"head": head},
        "key and prefix": {"head": prefixed},
        "prefix": prefixed,
        "bare": head,
        "compiled": {"head": {f"_orig_mod.{name}": tensor for name, tensor in head.items()}},
        "training state": {"head": head, "step": 1000, "optimizer": optimizer},
    }
    torch.save(forms[shape], tmp_path / "model.pt")
    written = write(tmp_path / "model.safetensors", vlm(state))
    assert_same_outputs(load(written, refiner=tmp_path / "model.pt"), reference)


def test_a_named_refiner_replaces_the_models_own(reference, state, refiner, tmp_path):
    other = {
        name: torch.zeros_like(t) if name.startswith("head.") else t for name, t in state.items()
    }
    assert_same_outputs(
        load(write(tmp_path / "model.safetensors", other), refiner=refiner), reference
    )


def test_weights_are_converted_to_the_dtype_asked_for(reference, state, tmp_path):
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    file = write(tmp_path / "model.safetensors", stored)
    wide, narrow = load(file), load(file, dtype=torch.bfloat16)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    for name, tensor in wide.state_dict().items():
        assert torch.equal(tensor, stored[name].float()), name


def test_weights_do_not_change_with_their_file(reference, state, tmp_path):
    """A rerun of training may overwrite the file that a running model was loaded from."""
    file = write(tmp_path / "model.safetensors", state)
    found = load(file)
    file.write_bytes(bytes(file.stat().st_size))
    assert_same_outputs(found, reference)


def test_one_tensor_at_a_time_is_in_memory(state, tmp_path, monkeypatch):
    reads: list[weakref.ref[Tensor]] = []
    real = checkpoints.safe_open

    class Watched:
        def __init__(self, *args, **kwargs):
            self.inner = real(*args, **kwargs)

        def __enter__(self):
            self.handle = self.inner.__enter__()
            return self

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

        def keys(self):
            return self.handle.keys()

        def get_slice(self, name):
            return self.handle.get_slice(name)

        def get_tensor(self, name):
            assert not any(read() is not None for read in reads), "an earlier tensor is still held"
            tensor = self.handle.get_tensor(name)
            reads.append(weakref.ref(tensor))
            return tensor

    monkeypatch.setattr(checkpoints, "safe_open", Watched)
    gc.collect()
    load(write(tmp_path / "model.safetensors", state))
    assert len(reads) == len(state)


def test_a_missing_tensor_is_named(state, tmp_path):
    rest = {
        name: tensor
        for name, tensor in state.items()
        if name != "model.text.blocks.1.mlp.router.bias"
    }
    with pytest.raises(
        CheckpointError,
        match=r"m\.safetensors: 1 tensor\(s\) missing: model\.text\.blocks\.1\.mlp\.router\.bias$",
    ):
        load(write(tmp_path / "m.safetensors", rest))


def test_an_extra_tensor_is_named_as_in_the_file(state, refiner, tmp_path):
    written = to_layout_b(state) | {
        "text_model.transformer.h.0.mixer.q_norm.weight": torch.zeros(2)
    }
    with pytest.raises(
        CheckpointError,
        match=(
            r"1 tensor\(s\) not part of the model:"
            r" text_model\.transformer\.h\.0\.mixer\.q_norm\.weight"
        ),
    ):
        load(write(tmp_path / "m.safetensors", written), refiner=refiner)


def test_a_misshapen_tensor_is_named_with_both_shapes(state, tmp_path):
    written = state | {"model.text.wte": torch.zeros(63, 32)}
    with pytest.raises(
        CheckpointError,
        match=r"1 tensor\(s\) misshapen: model\.text\.wte is \(63, 32\), expected \(64, 32\)",
    ):
        load(write(tmp_path / "m.safetensors", written))


def test_all_kinds_of_misfit_are_reported_at_once_and_before_any_weight_is_touched(
    reference, state, tmp_path
):
    written = {
        name: t for name, t in state.items() if not name.startswith("model.vision.blocks.0.")
    }
    written |= {"model.text.wte": torch.zeros(3), "model.extra": torch.zeros(1)}
    found = tiny_model()
    with pytest.raises(CheckpointError) as error:
        load_weights(found, [write(tmp_path / "m.safetensors", written)])
    message = str(error.value)
    assert "12 tensor(s) missing: model.vision.blocks.0.ln1.weight, " in message
    assert "and 2 more" in message
    assert "1 tensor(s) not part of the model: model.extra" in message
    assert "model.text.wte is (3,), expected (64, 32)" in message
    assert_same_outputs(found, reference)


def test_a_missing_refiner_says_what_to_give(state, tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"published apart: give them too, as with --refiner moondream/SegHeadRefiner",
    ):
        load(write(tmp_path / "m.safetensors", vlm(state)))


def test_a_moondream2_checkpoint_is_recognised(state, tmp_path):
    older = {
        name: t
        for name, t in state.items()
        if not name.startswith(("model.region.ln.", "model.region.coord_decoder."))
    }
    older |= {f"model.region.coord_decoder.fc{k}.weight": torch.zeros(2, 2) for k in (1, 2)}
    with pytest.raises(CheckpointError, match="moondream2 checkpoint, which cannot segment"):
        load(write(tmp_path / "m.safetensors", older))


def test_a_tensor_under_two_names_is_an_error(state, tmp_path):
    written = state | {"text_model.transformer.embd.wte.weight": state["model.text.wte"].clone()}
    with pytest.raises(CheckpointError, match=r"are both model\.text\.wte; keep one"):
        load(write(tmp_path / "m.safetensors", written))


def test_fp8_without_its_scale_is_an_error(state, refiner, tmp_path):
    written = quantise_experts(to_layout_b(state))
    del written["text_model.transformer.h.2.moe_quant.down_scale"]
    with pytest.raises(
        CheckpointError,
        match=(
            r"h\.2\.mlp\.output_experts\.weight is torch\.float8_e4m3fn: it is fp8, but has no"
            r" scale"
        ),
    ):
        load(write(tmp_path / "m.pt", written), refiner=refiner)


def test_a_scale_without_fp8_is_an_error(state, refiner, tmp_path):
    written = to_layout_b(state)
    written["text_model.transformer.h.1.moe_quant.up_scale"] = torch.ones(4, 32)
    with pytest.raises(
        CheckpointError,
        match=r"h\.1\.mlp\.experts\.weight is torch\.float32: it has a scale, but is not fp8",
    ):
        load(write(tmp_path / "m.pt", written), refiner=refiner)


def test_a_scale_that_is_not_per_output_channel_is_an_error(state, refiner, tmp_path):
    written = quantise_experts(to_layout_b(state))
    written["text_model.transformer.h.1.moe_quant.up_scale"] = torch.ones(4, 1)
    with pytest.raises(
        CheckpointError, match=r"h\.1\.moe_quant\.up_scale is \(4, 1\), expected \(4, 32\)"
    ):
        load(write(tmp_path / "m.pt", written), refiner=refiner)


@pytest.mark.parametrize("shape", [(), (3, 96), (4,)])
def test_a_fused_tau_that_cannot_be_halved_is_named(state, refiner, tmp_path, shape):
    written = fuse_tau(to_layout_b(state)) | {
        "text_model.transformer.h.0.tau_wqwv": torch.zeros(shape)
    }
    with pytest.raises(
        CheckpointError, match=r"not part of the model: text_model\.transformer\.h\.0\.tau_wqwv"
    ):
        load(write(tmp_path / "m.safetensors", written), refiner=refiner)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 64])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_damaged_file_is_named(tmp_path, suffix, content):
    file = tmp_path / f"broken.{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.{suffix}: cannot be read as a checkpoint"):
        load(file)


def test_a_truncated_safetensors_file_is_named(state, tmp_path):
    file = write(tmp_path / "cut.safetensors", state)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: cannot be read as a checkpoint"):
        load(file)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"head": Harm()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load(tmp_path / "model.pt")
    assert not (tmp_path / "harm").exists()


def full_size_names() -> dict[str, Tensor]:
    return {
        name: t
        for name, t in build_on_meta(MoondreamSegmentationConfig()).state_dict().items()
        if name.startswith("model.")
    }


def test_layout_b_names_of_the_full_size_model_are_ours_one_to_one():
    """Every published name becomes one of ours, no two the same, and none of ours is left over."""
    ours = full_size_names()
    theirs = to_layout_b(ours)
    assert len(theirs) == len(ours)
    renamed = [rename(name).removesuffix(".transposed") for name in theirs]
    assert sorted(renamed) == sorted(ours)
    assert not any(name.startswith("model.") for name in theirs)


def test_our_names_are_not_renamed():
    assert all(
        rename(name) == name for name in build_on_meta(MoondreamSegmentationConfig()).state_dict()
    )


def test_full_size_layout_b_fits_in_shape():
    """Shapes of a full-size fp8 file, written out: 24 layers of width 2048, 64 experts of 1024."""
    shapes = {name: tuple(t.shape) for name, t in to_layout_b(full_size_names()).items()}
    assert shapes["text_model.transformer.embd.wte.weight"] == (51200, 2048)
    assert shapes["text_model.transformer.h.0.mixer.Wqkv.weight"] == (6144, 2048)
    assert shapes["text_model.transformer.h.3.mlp.fc1.weight"] == (8192, 2048)
    assert shapes["text_model.transformer.h.4.gate.weight"] == (64, 2048)
    assert shapes["text_model.transformer.h.23.mlp.experts.weight"] == (64, 2048, 2048)
    assert shapes["text_model.transformer.h.23.mlp.output_experts.weight"] == (64, 2048, 1024)
    assert shapes["text_model.transformer.h.23.tau_wq"] == (32, 6144)
    assert shapes["text_model.transformer.h.23.tau_alpha"] == (32,)
    assert shapes["region_model.coordinate_features.weight"] == (128, 1)
    assert shapes["region_model.size_features.weight"] == (256, 2)
    assert shapes["region_model.size_head.weight"] == (2048, 2048)
    assert shapes["vision_encoder.encoder.model.visual.patch_embed.linear.weight"] == (1152, 588)
    assert shapes["vision_encoder.encoder.model.visual.pos_embed"] == (1, 729, 1152)
    assert shapes["vision_encoder.projection.mlp.fc1.weight"] == (8192, 2304)
    assert "text_model.transformer.h.24.ln.weight" not in shapes
