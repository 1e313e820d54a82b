"""All three stages on the real architecture: only low-rank layers learn, and merging keeps it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tiny import outputs, tiny_model
from wordmask.model.hub.registry import TOKENIZER_FILE
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.train.export import export_model
from wordmask.model.train.lora import (
    LoRALinear,
    adapters,
    adapters_disabled,
    add_lora,
    load_trainable_state_dict,
    merge_lora,
    trainable_state_dict,
)
from wordmask.model.train.refiner import train as refiner
from wordmask.model.train.refiner.config import RefinerSettings
from wordmask.model.train.refiner.data import CoarseMasks
from wordmask.model.train.rl import train as rl
from wordmask.model.train.rl.config import RlSettings
from wordmask.model.train.sft import train as sft
from wordmask.model.train.sft.config import Phase, SftSettings
from wordmask.model.train.small_model import small_config, small_tokenizer, trained_model

RANK = 4


def learned_something(model: MoondreamSegmentation) -> MoondreamSegmentation:
    add_lora(model, RANK)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.up.weight, std=0.1)
    return model


def all_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_an_adapted_model_starts_as_it_was_and_can_be_so_again() -> None:
    before = outputs(tiny_model())
    model = tiny_model()
    add_lora(model, RANK)
    assert {name.split(".", 3)[-1] for name in adapters(model)} == {
        "0.attn.qkv",
        "0.attn.proj",
        "0.mlp.fc1",
        "0.mlp.fc2",
    } | {f"{layer}.attn.{part}" for layer in (1, 2) for part in ("qkv", "proj")}, (
        "attention of every block, and the dense block's layers; not the experts"
    )
    assert all_close(outputs(model), before)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.up.weight, std=0.1)
    assert not all_close(outputs(model), before)
    with adapters_disabled(model):
        assert all_close(outputs(model), before)
    assert not all_close(outputs(model), before)


def test_what_was_learned_stays_in_the_weights() -> None:
    adapted, merged = learned_something(tiny_model()), tiny_model()
    add_lora(merged, RANK)
    load_trainable_state_dict(merged, trainable_state_dict(adapted))
    merge_lora(merged)
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    assert merged.state_dict().keys() == tiny_model().state_dict().keys()
    assert all_close(outputs(merged), outputs(adapted))


def test_only_the_small_matrices_learn_and_are_kept() -> None:
    model = learned_something(tiny_model())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == trainable_state_dict(model).keys()
    with pytest.raises(RuntimeError, match="learns otherwise"):
        load_trainable_state_dict(model, {"model.text.wte": model.model.text.wte})
    with pytest.raises(ValueError, match=r"lora_rank = 0: must be 1\.\.32"):
        add_lora(tiny_model(), 0)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model at its real widths, cut to two blocks of each kind, with random weights."""
    folder = tmp_path_factory.mktemp("cut")
    config = MoondreamSegmentationConfig()
    text = asdict(config.text) | {
        "n_layers": 2,
        "vocab_size": 2048,
        "moe": asdict(config.text.moe) | {"start_layer": 1, "num_experts": 8},
    }
    vision = asdict(config.vision) | {"enc_n_layers": 2, "early_layer": 0}
    tokens = asdict(small_config(small_tokenizer()).tokens) | {"max_new_tokens": 12}
    torch.manual_seed(0)
    model = MoondreamSegmentation(
        MoondreamSegmentationConfig(vision=vision, text=text, tokens=tokens)
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    small_tokenizer().save(folder / TOKENIZER_FILE)
    return folder


def test_all_three_stages_run_at_the_real_widths(
    cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = Phase(name="path", steps=1, images=1, queries=2, n_objects=(2, 3), learning_rate=1e-3)
    supervised = SftSettings(
        phases=(phase,),
        warmup=1,
        workers=0,
        dtype="float32",
        scenes="shipped",
        model=str(cut),
        lora_rank=RANK,
    )
    state = sft.train(tmp_path / "sft", supervised)
    ups = [layer.up.weight for layer in adapters(state.model).values()]
    assert all(up.any() for up in ups), "every adapted layer has learned"
    assert state.model.config.text.dim == 2048
    export_model(tmp_path / "sft", None, tmp_path / "sft-model")

    once = {"scenes": "shipped", "steps": 1, "warmup": 1}
    few = RlSettings(
        **once,
        questions=1,
        rollouts=2,
        learned=2,
        max_tokens=12,
        temperature=1.0,
        eval_scenes=1,
        lora_rank=RANK,
    )
    reinforced = rl.train(tmp_path / "rl", few, str(tmp_path / "sft-model"))
    assert reinforced.reference is reinforced.policy, (
        "a second copy would not fit where LoRA is wanted"
    )
    saved = torch.load(tmp_path / "rl" / "last.pt", weights_only=True)
    assert saved["model"].keys() == trainable_state_dict(reinforced.model).keys()

    # Untrained, it draws nothing that meets its target, so it would be asked for ever.
    image, mask = torch.zeros(1, 378, 378, 3, dtype=torch.uint8), torch.zeros(1, 378, 378)
    monkeypatch.setattr(refiner, "rollout_pool", lambda *_: CoarseMasks(image, mask, mask))
    head_only = RefinerSettings(**once, batch=2, drawn=1, pool_rows=1, workers=0)
    refiner.train(tmp_path / "rl", tmp_path / "refiner", head_only)
    head = torch.load(tmp_path / "refiner" / "last.pt", weights_only=True)["head"]
    before = trained_model(tmp_path / "rl").model.head.state_dict()
    assert any(not torch.equal(head[name], value) for name, value in before.items())
