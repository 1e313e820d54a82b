"""Published checkpoints into our module names (docs/model.md, Checkpoints).

Two layouts are in use, and one table turns the second into the first, whose names are our modules'
own:

- A, `moondream/moondream3-preview`: `model.{vision,text,region}.*`; our own checkpoints, with
  `head.*` for the refiner.
- B, `moondream3.1-9B-A2B` and the fp8 `.pt` files: `text_model.*`, `vision_encoder.*`,
  `region_model.*`.

The refiner's `model.pt` holds its tensors under the key `head`.

Where the published material is silent we read it so:

- `mlp.experts.weight` holds an expert's halves in the order (h, g), as layout A does.
- A fused `tau_wqwv` is `wq` above `wv`: the order of its name, and the published engine stacks them
  so.
- An fp8 scale is (experts, out) and multiplies the rows of its expert: one number for each output
  channel.
- Only expert weights are fp8, and only fp8 weights have a scale; anything else is an error rather
  than a guess.
- `coordinate_features` and `size_features` are always transposed in B, also where a square shape
  would fit as it is.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

RENAMES: tuple[tuple[str, str], ...] = (
    (r"\._orig_mod\b", ""),
    (r"^text_model\.transformer\.embd\.wte\.weight$", "model.text.wte"),
    (r"^text_model\.transformer\.h\.(\d+)\.", r"model.text.blocks.\1."),
    (r"^text_model\.lm_head\.ln\.", "model.text.post_ln."),
    (r"^text_model\.lm_head\.linear\.", "model.text.lm_head."),
    (r"^(model\.text\.blocks\.\d+)\.mixer\.Wqkv\.", r"\1.attn.qkv."),
    (r"^(model\.text\.blocks\.\d+)\.mixer\.out_proj\.", r"\1.attn.proj."),
    (r"^(model\.text\.blocks\.\d+)\.tau_(wq|wv|wqwv|alpha)$", r"\1.attn.tau.\2"),
    (r"^(model\.text\.blocks\.\d+)\.gate\.", r"\1.mlp.router."),
    (r"^(model\.text\.blocks\.\d+)\.mlp\.experts\.", r"\1.mlp.fc1."),
    (r"^(model\.text\.blocks\.\d+)\.mlp\.output_experts\.", r"\1.mlp.fc2."),
    (r"^(model\.text\.blocks\.\d+)\.moe_quant\.up_scale$", r"\1.mlp.fc1.scale"),
    (r"^(model\.text\.blocks\.\d+)\.moe_quant\.down_scale$", r"\1.mlp.fc2.scale"),
    (r"^vision_encoder\.projection\.mlp\.", "model.vision.proj_mlp."),
    (r"^vision_encoder\.encoder\.model\.visual\.", "model.vision."),
    (r"^model\.vision\.patch_embed\.linear\.", "model.vision.patch_emb."),
    (r"^model\.vision\.pos_embed$", "model.vision.pos_emb"),
    (r"^(model\.vision\.blocks\.\d+)\.norm([12])\.", r"\1.ln\2."),
    (r"^model\.vision\.norm\.", "model.vision.post_ln."),
    (r"^region_model\.coordinate_(encoder|head|features)\b", r"region_model.coord_\1"),
    (r"^region_model\.(coord|size)_head\.", r"model.region.\1_decoder."),
    (r"^region_model\.(coord|size)_features\.weight$", r"model.region.\1_features.transposed"),
    (r"^region_model\.", "model.region."),
)

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MAX_NAMED = 10  # tensors that an error lists by name
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    SafetensorError,
    pickle.UnpicklingError,
)


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model. The message names the file and the tensors."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file: its name, its shape, and how to read it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def then(self, shape: Sequence[int], change: Callable[[Tensor], Tensor]) -> StoredTensor:
        """Return the same tensor, changed to `shape` after reading."""
        return replace(self, shape=tuple(shape), read=lambda: change(self.read()))


def rename(name: str) -> str:
    """Return our name for a checkpoint's tensor; a name of no known layout stays as it is."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_weights(
    module: nn.Module,
    files: Sequence[Path],
    *,
    refiner_files: Sequence[Path] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fill a module, also one on the meta device, from checkpoint files of any published layout.

    The module is moved to `device` and `dtype` first; then one tensor after another is read,
    converted and copied in, so there is never a second copy of the weights. Names and shapes are
    checked before the first tensor is read.

    Args:
        module: is filled in place.
        files: the checkpoint's.
        refiner_files: where the tensors of `head.*` come from; by default from `files` as well.
        device: where the module is put.
        dtype: of the module's tensors.

    Raises:
        CheckpointError: a tensor is missing, not part of the model, there twice, or of the wrong
            shape; or a file is damaged.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    with ExitStack() as open_files:
        found = _stored_in(files, open_files)
        if refiner_files:
            found = [tensor for tensor in found if not rename(tensor.name).startswith("head.")]
            for file in refiner_files:
                found += _refiner_tensors(_stored_in([file], open_files))
        stored = _in_our_names(found)
        _check(expected, stored, (*files, *refiner_files))
        module.to(dtype).to_empty(device=device)
        with torch.no_grad():
            for name, target in module.state_dict().items():
                target.copy_(stored[name].read())


def _stored_in(files: Sequence[Path], open_files: ExitStack) -> list[StoredTensor]:
    """Return every tensor of the files, unread."""
    found: list[StoredTensor] = []
    for file in files:
        try:
            if file.suffix == ".safetensors":
                found += _safetensors(file, open_files)
            else:
                found += _pickled(file)
        except UNREADABLE as error:
            raise CheckpointError(f"{file}: cannot be read as a checkpoint: {error}") from error
    return found


def _safetensors(file: Path, open_files: ExitStack) -> Iterator[StoredTensor]:
    handle = open_files.enter_context(safe_open(file, framework="pt"))
    names: list[str] = handle.keys()
    for name in names:
        shape = tuple(handle.get_slice(name).get_shape())
        yield StoredTensor(name=name, file=file, shape=shape, read=partial(handle.get_tensor, name))


def _pickled(file: Path) -> Iterator[StoredTensor]:
    values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(values, Mapping):
        raise ValueError(f"holds a {type(values).__name__}, not tensors by name")
    for name, tensor in _flatten(values):
        yield StoredTensor(
            name=name, file=file, shape=tuple(tensor.shape), read=partial(_itself, tensor)
        )


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts under dotted names; others are skipped."""
    for key, value in values.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")


def _refiner_tensors(stored: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Return a file's refiner tensors under `head.`.

    They are those below `head` if the file has it (beside other things), else all.
    """
    renamed = [replace(tensor, name=rename(tensor.name)) for tensor in stored]
    heads = [tensor for tensor in renamed if tensor.name.startswith("head.")]
    return [_below_head(tensor) for tensor in heads or renamed]


def _below_head(tensor: StoredTensor) -> StoredTensor:
    own_name = re.sub(r"^(head\.)+", "", tensor.name)
    return replace(tensor, name="head." + own_name)


def _in_our_names(found: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """Return stored tensors by our names: renamed, transposed, split and scaled."""
    by_name: dict[str, StoredTensor] = {}
    for tensor in found:
        for name, part in _split(*_transposed(rename(tensor.name), tensor)):
            if name in by_name:
                raise CheckpointError(
                    f"{tensor.file}: {tensor.name} and {by_name[name].name} are both {name};"
                    " keep one"
                )
            by_name[name] = part
    return {
        name: _scaled(name, tensor, by_name)
        for name, tensor in by_name.items()
        if not _is_used_scale(name, by_name)
    }


def _transposed(name: str, tensor: StoredTensor) -> tuple[str, StoredTensor]:
    """Return a tensor that layout B stores transposed as layout A has it; others as they are."""
    if not name.endswith(".transposed"):
        return name, tensor
    turned = tensor.then(tensor.shape[::-1], lambda stored: stored.T)
    return name.removesuffix(".transposed"), turned


def _split(name: str, tensor: StoredTensor) -> list[tuple[str, StoredTensor]]:
    """Return the two parts of a fused `wqwv`; others as they are."""
    if not name.endswith(".tau.wqwv") or len(tensor.shape) != 2 or tensor.shape[0] % 2:
        return [(name, tensor)]
    rows = tensor.shape[0] // 2
    half = (rows, *tensor.shape[1:])
    upper = tensor.then(half, lambda fused: fused[:rows])
    lower = tensor.then(half, lambda fused: fused[rows:])
    stem = name.removesuffix("wqwv")
    return [(stem + "wq", upper), (stem + "wv", lower)]


def _is_used_scale(name: str, by_name: Mapping[str, StoredTensor]) -> bool:
    return name.endswith(".scale") and name.removesuffix("scale") + "weight" in by_name


def _scaled(name: str, tensor: StoredTensor, by_name: Mapping[str, StoredTensor]) -> StoredTensor:
    """Return a tensor that is multiplied by its scale after reading, if it has one."""
    scale = _scale_of(name, by_name)
    if scale is not None and scale.shape != tensor.shape[:-1]:
        raise CheckpointError(
            f"{scale.file}: {scale.name} is {scale.shape}, expected {tensor.shape[:-1]}: one for"
            " each output channel"
        )
    return tensor.then(tensor.shape, lambda stored: _dequantise(stored, tensor, scale))


def _scale_of(name: str, by_name: Mapping[str, StoredTensor]) -> StoredTensor | None:
    if not name.endswith(".weight"):
        return None
    return by_name.get(name.removesuffix("weight") + "scale")


def _dequantise(stored: Tensor, tensor: StoredTensor, scale: StoredTensor | None) -> Tensor:
    is_fp8 = stored.dtype in FP8
    found = f"{tensor.file}: {tensor.name} is {stored.dtype}"
    if scale is None:
        if is_fp8:
            raise CheckpointError(f"{found}: it is fp8, but has no scale")
        return stored
    if not is_fp8:
        raise CheckpointError(f"{found}: it has a scale, but is not fp8")
    return stored.float() * scale.read().float()[..., None]


def _check(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredTensor],
    files: Sequence[Path],
) -> None:
    missing = [name for name in expected if name not in stored]
    extra = [tensor.name for name, tensor in stored.items() if name not in expected]
    misshapen = [
        f"{stored[name].name} is {stored[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    raise_misfit(", ".join(map(str, files)), missing, extra, misshapen)


def raise_misfit(
    where: str, missing: Sequence[str], extra: Sequence[str], misshapen: Sequence[str]
) -> None:
    """Raise a CheckpointError that lists what does not fit; do nothing if all fits.

    Args:
        where: the files, for the message.
        missing: tensors of the model that no file has.
        extra: tensors of the files that the model does not have.
        misshapen: tensors of another shape, each with both shapes.
    """
    misfits = {"missing": missing, "not part of the model": extra, "misshapen": misshapen}
    problems = [
        f"{len(names)} tensor(s) {problem}: {_listed(names)}"
        for problem, names in misfits.items()
        if names
    ]
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join([*problems, *_hints(missing, extra)]))


def _hints(missing: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Return what to do about misfits of known causes."""
    hints = []
    if missing and all(name.startswith("head.") for name in missing):
        hints.append(
            "the refiner's weights are published apart: give them too, as with --refiner"
            " moondream/SegHeadRefiner"
        )
    lacks_region_norm = any(name.startswith("model.region.ln.") for name in missing)
    has_deep_decoders = any("decoder.fc1." in name for name in extra)
    if lacks_region_norm and has_deep_decoders:
        hints.append("this is a moondream2 checkpoint, which cannot segment; moondream3 can")
    return hints


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:MAX_NAMED])
    more = len(names) - MAX_NAMED
    if more > 0:
        text += f" and {more} more"
    return text
