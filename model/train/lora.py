"""LoRA (Hu et al. 2021, arXiv 2106.09685): a large model learns through a few small matrices beside
frozen ones.

For models that no machine at hand can train whole. What is adapted: the decoder's attention and its
dense layers; experts, embeddings, region decoders and encoder are frozen. The small matrices are
float32 whatever the model's own format is: in bfloat16 an optimizer's steps would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wordmask.model.nn.layers import Mlp
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.text import TextAttention

SCALE = 2.0  # of what is learned; alpha / rank of the paper


class LoRALinear(nn.Module):
    """y = base(x) + SCALE * up(down(x)): the base frozen, `up` 0 at first. x (..., in), y (...,
    out).
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(
            base.in_features, rank, bias=False, device=base.weight.device, dtype=torch.float32
        )
        self.up = nn.Linear(
            rank, base.out_features, bias=False, device=base.weight.device, dtype=torch.float32
        )
        nn.init.zeros_(self.up.weight)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + (SCALE * self.up(self.down(x.float()))).to(y.dtype) if self.enabled else y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base with what was learned added to its weights."""
        self.base.weight += (SCALE * self.up.weight @ self.down.weight).to(self.base.weight.dtype)
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
    for parent in [
        module for module in model.model.text.modules() if isinstance(module, TextAttention | Mlp)
    ]:
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, LoRALinear(layer, rank))


def merge_lora(model: MoondreamSegmentation) -> None:
    """Take the `LoRALinear` layers out again; what they learned stays in the weights."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoRALinear):
                setattr(parent, name, layer.merged())


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The `LoRALinear` layers in a model by their names, none where it learns whole."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)
    }


def trainable_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint must hold: the small matrices of an adapted model, all of any other."""
    small = tuple(f"{name}.{part}." for name in adapters(model) for part in ("down", "up"))
    return {
        name: value
        for name, value in model.state_dict().items()
        if not small or name.startswith(small)
    }


def load_trainable_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put it back. RuntimeError if it is not what this model learns."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    lost = sorted({*missing} & trainable_state_dict(model).keys())
    if lost or unexpected:
        raise RuntimeError(
            f"the checkpoint is of a model that learns otherwise: without {lost[:3]}, with"
            f" {unexpected[:3]}"
        )


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what it did before it was adapted: a reference that takes no
    memory of its own.
    """
    for layer in adapters(model).values():
        layer.enabled = False
    try:
        yield
    finally:
        for layer in adapters(model).values():
            layer.enabled = True
