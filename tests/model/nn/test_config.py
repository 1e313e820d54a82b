"""Configurations: errors name what does not fit, and every kind of JSON reads back."""

from __future__ import annotations

import json

import pytest

from tests.support.tiny import REFINER, REGION, TEXT, VISION, tiny_config
from wordmask.model.nn.config import MoeConfig, MoondreamSegmentationConfig, TextConfig, TokenConfig

FULL = {"vision": VISION, "text": TEXT, "region": REGION, "refiner": REFINER}


@pytest.mark.parametrize(
    ("section", "field", "value", "rule"),
    [
        ("vision", "crop_size", 71, "must be a multiple of enc_patch_size"),
        ("vision", "enc_n_heads", 5, "must be a multiple of enc_n_heads"),
        ("vision", "overlap_margin", 3, "must leave a window inside the grid of 5 patches"),
        ("vision", "overlap_margin", -1, "must leave a window inside the grid of 5 patches"),
        ("vision", "early_layer", 3, "must be a block index below 3"),
        ("vision", "max_crops", 0, "must be at least 1"),
        ("text", "n_heads", 3, "must be a multiple of n_heads"),
        ("text", "n_kv_heads", 1, "grouped-query attention is not part of this architecture"),
        ("text", "rotary_dim", 7, "must be even and at most the head's 16"),
        ("text", "rotary_dim", 18, "must be even and at most the head's 16"),
        ("text", "prefix_attn", 25, "must be BOS \\+ 25 image tokens"),
        ("text", "moe", TEXT["moe"] | {"experts_per_token": 5}, "must be 1..4"),
        ("region", "dim", 16, "must be text.dim = 32"),
        ("vision", "proj_out_dim", 16, "must be text.dim = 32"),
        ("refiner", "enc_dim", 16, "must be vision.enc_dim = 32"),
        ("refiner", "embed_dim", 48, "must be a multiple of 32"),
        ("refiner", "iterations", -1, "must not be negative"),
    ],
)
def test_a_value_that_does_not_fit_is_named(section, field, value, rule):
    with pytest.raises(ValueError, match=rule):
        MoondreamSegmentationConfig(**(FULL | {section: FULL[section] | {field: value}}))


@pytest.mark.parametrize("section", ["vision", "text", "region", "refiner", "tokens"])
def test_an_unknown_field_is_named_beside_the_known_ones(section):
    with pytest.raises(ValueError, match=rf"{section}: unknown field\(s\) wheels; known are "):
        MoondreamSegmentationConfig(**(FULL | {section: FULL.get(section, {}) | {"wheels": 4}}))


def test_sections_are_frozen():
    with pytest.raises(AttributeError):
        tiny_config().text.dim = 64


def test_defaults_are_the_published_model():
    config = MoondreamSegmentationConfig()
    assert config.vision.n_tokens == 729
    assert config.text.head_dim == 64
    assert config.text.moe == MoeConfig(
        num_experts=64, start_layer=4, experts_per_token=8, expert_inner_dim=1024
    )
    assert config.tokens == TokenConfig(
        prompt_prefix=(1, 17374, 2), prompt_suffix=(3,), max_new_tokens=768
    )


def test_json_round_trip(tmp_path):
    config = MoondreamSegmentationConfig(
        **FULL, tokens={"prompt_prefix": [1, 9, 2], "max_query_tokens": 7}
    )
    config.save_pretrained(tmp_path)
    found = MoondreamSegmentationConfig.from_pretrained(tmp_path)
    for section in ("vision", "text", "region", "refiner", "tokens"):
        assert getattr(found, section) == getattr(config, section)
    assert found.tokens.prompt_prefix == (1, 9, 2)
    assert (
        json.loads((tmp_path / "config.json").read_text())["model_type"] == "moondream_segmentation"
    )


def read(tmp_path, values: dict) -> MoondreamSegmentationConfig:
    (tmp_path / "config.json").write_text(json.dumps(values))
    return MoondreamSegmentationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "values", [{}, {"config": {}}, {"model_type": "moondream3"}, {"config": {"skills": ["query"]}}]
)
def test_published_files_without_sections_are_the_full_size(tmp_path, values):
    assert read(tmp_path, values).text == TextConfig()


def test_published_sections_may_be_nested_or_not(tmp_path):
    flat, nested = (
        read(tmp_path, FULL | {"model_type": "moondream3"}),
        read(tmp_path, {"config": FULL}),
    )
    for section in FULL:
        assert getattr(flat, section) == getattr(nested, section) == getattr(tiny_config(), section)


def test_published_files_may_name_token_ids_and_quantisation(tmp_path):
    tokenizer = {
        "bos_id": 0,
        "eos_id": 0,
        "coord_id": 8,
        "size_id": 9,
        "answer_id": 3,
        "templates": {"query": None},
    }
    values = {
        "config": {"text": TEXT | {"group_size": 128}} | {"tokenizer": tokenizer},
        "torch_dtype": "bfloat16",
    }
    values["config"] |= {"vision": VISION, "region": REGION, "refiner": REFINER}
    found = read(tmp_path, values)
    assert (found.tokens.coord_id, found.tokens.size_id) == (8, 9)
    assert str(found.dtype) == "torch.bfloat16"
    assert found.text == tiny_config().text


def test_an_unknown_field_in_a_published_section_is_an_error(tmp_path):
    """A field we do not know may change what the model computes: better refused than guessed."""
    with pytest.raises(ValueError, match=r"text: unknown field\(s\) sliding_window"):
        read(tmp_path, {"config": {"text": {"sliding_window": 512}}})


# Fields of the published engine's configuration at its newest, with the values of Moondream 3.
NEWEST = {
    "text": {"group_size": None, "tau_attn": True, "rope_theta": 1_500_000.0, "max_context": 32768},
    "region": {"decoder_arch": "linear", "use_ln": True},
    "tokenizer": {"templates": {"segment": {"prefix": [1, 17374, 2], "suffix": [3]}}},
}


def test_the_newest_published_fields_are_accepted_at_the_values_that_are_implemented(tmp_path):
    found = read(tmp_path, {"config": NEWEST})
    assert (found.text, found.tokens) == (TextConfig(), TokenConfig())


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text", "tau_attn", False),
        ("text", "moe", None),
        ("region", "use_ln", False),
        ("region", "decoder_arch", "mlp"),
    ],
)
def test_a_published_architecture_that_is_not_implemented_is_refused(
    tmp_path, section, field, value
):
    with pytest.raises(ValueError, match=rf"{section}\.{field} = {value!r}: .*implemented"):
        read(tmp_path, {"config": NEWEST | {section: NEWEST[section] | {field: value}}})


def test_a_published_segment_prompt_of_other_tokens_is_used(tmp_path):
    template = {"prefix": [1, 9, 8, 2], "suffix": [3, 4]}
    found = read(tmp_path, {"config": {"tokenizer": {"templates": {"segment": template}}}})
    assert found.tokens == TokenConfig(prompt_prefix=(1, 9, 8, 2), prompt_suffix=(3, 4))


@pytest.mark.parametrize(
    "template",
    [
        None,  # Moondream 2, which cannot segment
        [1, 17374, 2],
        {"prefix": [1, 17374, 2]},
        {"prefix": "segment:", "suffix": [3]},
        {"prefix": [1, 51200, 2], "suffix": [3]},
        {"prefix": [1, -1, 2], "suffix": [3]},
        {"prefix": [1, 17374, 2], "suffix": [3], "answer_prefix": [4]},
    ],
)
def test_a_published_segment_prompt_that_cannot_be_used_is_refused(tmp_path, template):
    with pytest.raises(ValueError, match=r"tokenizer\.templates\.segment.* must "):
        read(tmp_path, {"config": {"tokenizer": {"templates": {"segment": template}}}})
