"""LoRA (Hu et al. 2021, arXiv 2106.09685): a large model learns through small matrices.

For models that no machine at hand can train whole. The decoder's attention and its dense layers are
adapted; experts, embeddings, region decoders and encoder are frozen. The small matrices are float32
whatever the model's own format is: in bfloat16 an optimizer's steps would be lost.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wordmask.model.nn.layers import Mlp
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.text import TextAttention

SCALE = 2.0  # of the update; alpha / rank in the paper


class LoRALinear(nn.Module):
    """y = base(x) + SCALE * up(down(x)), where the base is frozen and `up` is 0 at first.

    Shapes: x (..., in), y (..., out).
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.weight.device
        self.down = nn.Linear(
            base.in_features, rank, bias=False, device=device, dtype=torch.float32
        )
        self.up = nn.Linear(rank, base.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        update = SCALE * self.up(self.down(x.float()))
        return y + update.to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the base, with the product of the small matrices added to its weights."""
        update = SCALE * self.up.weight @ self.down.weight
        self.base.weight += update.to(self.base.weight.dtype)
        return self.base


def add_lora(model: MoondreamSegmentation, rank: int) -> None:
    """Freeze a model and put `LoRALinear` layers into its decoder.

    Raises:
        ValueError: unless 1 <= rank <= the decoder's width.
    """
    width = model.config.text.dim
    if not 1 <= rank <= width:
        raise ValueError(f"lora_rank = {rank}: must be 1..{width} (the decoder's width)")
    model.requires_grad_(False)
    for module in [*model.model.text.modules()]:
        if not isinstance(module, TextAttention | Mlp):
            continue
        for name, layer in [*module.named_children()]:
            if isinstance(layer, nn.Linear):
                setattr(module, name, LoRALinear(layer, rank))


def merge_lora(model: MoondreamSegmentation) -> None:
    """Take the `LoRALinear` layers out of a model and keep their updates in its weights."""
    for parent in [*model.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, LoRALinear):
                setattr(parent, name, layer.merged())


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the `LoRALinear` layers of a model by their names: none where it learns whole."""
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, LoRALinear)}


def trainable_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the small matrices of an adapted model, or all tensors of any other."""
    state = model.state_dict()
    small = tuple(f"{name}.{part}." for name in adapters(model) for part in ("down", "up"))
    if not small:
        return {**state}
    return {name: value for name, value in state.items() if name.startswith(small)}


def load_trainable_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `trainable_state_dict` returned.

    Raises:
        RuntimeError: if it is of a model that learns otherwise.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    lost = sorted({*missing} & trainable_state_dict(model).keys())
    if lost or unexpected:
        raise RuntimeError(
            f"the checkpoint is of a model that learns otherwise: without {lost[:3]}, with"
            f" {unexpected[:3]}"
        )


@contextmanager
def adapters_disabled(model: nn.Module) -> Generator[None]:
    """Within, a model computes as it did before it was adapted.

    It is its own reference then, which takes no further memory.
    """
    layers = adapters(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
