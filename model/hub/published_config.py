"""Configuration files of published models, in the terms of `model.nn.config`.

A field that is not known is left for the sections there, which refuse it. One that is known, and
has a value which is not implemented, is refused here.
"""

from __future__ import annotations

from typing import Any

_SECTIONS = ("vision", "text", "region", "refiner")
_TOKEN_IDS = ("bos_id", "eos_id", "coord_id", "size_id")
# Fields of the published engine that choose between architectures, with the choice that is
# implemented. The others belong to models that cannot segment.
_IMPLEMENTED: dict[str, dict[str, Any]] = {
    "text": {"tau_attn": True},
    "region": {"decoder_arch": "linear", "use_ln": True},
}


def from_published(values: dict[str, Any], default_vocab_size: int) -> dict[str, Any]:
    """Return a published config.json in the terms of `model.nn.config`.

    Published ones hold the sections below `config`, and only where they differ from the full size.
    What else they hold (auto_map, skills, prompts of other tasks) does not concern segmentation.

    Raises:
        ValueError: a field has a value that is not implemented, or the `segment` prompt is none.
    """
    nested = values.get("config") or values
    ours: dict[str, Any] = {}
    for name in _SECTIONS:
        if nested.get(name):
            ours[name] = _section(name, nested[name])
    vocab_size = ours.get("text", {}).get("vocab_size", default_vocab_size)
    if tokens := _tokens(nested.get("tokenizer") or {}, vocab_size):
        ours["tokens"] = tokens
    for key in ("dtype", "torch_dtype"):
        if key in values:
            ours[key] = values[key]
    return ours


def _section(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a section without the fields whose only implemented value it has."""
    fields = dict(values)
    # Quantisation of other checkpoints: here shapes and dtypes of the tensors decide.
    fields.pop("group_size", None)
    for key, implemented in _IMPLEMENTED.get(name, {}).items():
        value = fields.pop(key, implemented)
        if value != implemented:
            raise ValueError(
                f"{name}.{key} = {value!r}: only {implemented!r} is implemented; use a Moondream 3"
                " model"
            )
    if name == "text" and fields.get("moe", {}) is None:
        raise ValueError(
            "text.moe = None: a decoder without experts is not implemented; use a Moondream 3 model"
        )
    return fields


def _tokens(tokenizer: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return the token ids of a tokenizer section, and those of its `segment` prompt if any."""
    tokens: dict[str, Any] = {key: tokenizer[key] for key in _TOKEN_IDS if key in tokenizer}
    templates = tokenizer.get("templates") or {}
    if "segment" not in templates:
        return tokens
    template = templates["segment"]
    if not isinstance(template, dict) or template.keys() != {"prefix", "suffix"}:
        raise ValueError(
            f"tokenizer.templates.segment = {template!r}: must be a prefix and a suffix, as of a"
            " model that can segment"
        )
    for part, ids in template.items():
        if not _are_token_ids(ids, vocab_size):
            raise ValueError(
                f"tokenizer.templates.segment.{part} = {ids!r}: must be token ids in"
                f" 0..{vocab_size - 1}"
            )
        tokens[f"prompt_{part}"] = ids
    return tokens


def _are_token_ids(ids: Any, vocab_size: int) -> bool:
    if not isinstance(ids, list):
        return False
    return all(type(token) is int and 0 <= token < vocab_size for token in ids)
