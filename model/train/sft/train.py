"""Stage 1 of the paper: supervised path decoding.

The abstract says only that paths are learned with a token loss. What is ours:

- Three phases of one run: `vision` (the encoder alone, on dense labels of what each patch shows),
  `box` (most sequences end after the size token: half the tokens), `path` (whole sequences).
  Finding the object is the slow part, so it goes first.
- Bins and the numbers of a path are learned against a Gaussian around the target rather than a
  single class, because the neighbours of a coordinate are nearly right.
- Auxiliary losses, for training only: each patch's name, colour, size, ranks and box from the
  vision features, and once more from the image tokens in the decoder; each word for a name, colour
  or size pointing at all patches it fits, early, so that the words of an expression can be added
  up; one attention head of a middle block looking, at each name, with its colour, at what fits
  both, and its token, and later the last prompt token, holding the box of that, so that a relation
  knows where what it is to lies; the last prompt token pointing at the image tokens that the target
  covers; one attention head of a late block looking there while the box and the first path tokens
  are drawn; image tokens holding their object's box in the code the region decoders read; and the
  size token, where the path is about to begin, knowing the target's name. What finds nothing looks
  at the token that begins the prefix, and the answer to it, its first token, counts for itself as
  well.
- The queries of an image share its prefix: one sequence per image, in which a query attends to the
  prefix and itself.
- What a run gives is not its last weights but their running mean (`average`): a step sees few
  scenes, and its noise is most of what one set of weights errs by.
- A model that can do much already, of whatever size (`--model moondream/moondream3-preview`),
  learns whole sequences at once, by the token losses alone, through LoRA (`lora`): its encoder and
  its experts are frozen.

Run: `python -m wordmask.model.train.sft.train --out runs/sft` (again with the same --out to resume;
`--init model/assets/demo` starts from the weights of a model folder instead of fresh ones), or on N
devices or cores, with N times the images of a step, `torchrun --nproc-per-node N -m
wordmask.model.train.sft.train --out runs/sft --threads 1`.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.hub.registry import TOKENIZER_FILE, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.config import BOX_TOKENS
from wordmask.model.nn.image_crops import normalise
from wordmask.model.nn.moondream import Moondream, MoondreamSegmentation, parameter_count
from wordmask.model.nn.region import SIZE_OCTAVES, Region
from wordmask.model.nn.vision import CropFeatures
from wordmask.model.runtime.devices import keep_freed_memory
from wordmask.model.scenes.dataset import SOURCES, SceneDataset
from wordmask.model.train.loop import (
    OnProgress,
    average_gradients,
    ignore_progress,
    join_processes,
    process_rank,
    progress_bar,
    save_checkpoint,
    warmup_cosine,
)
from wordmask.model.train.lora import add_lora, load_trainable_state_dict, trainable_state_dict
from wordmask.model.train.sft.data import (
    IGNORE,
    N_CLASSES,
    NAMES,
    Batch,
    SceneBatches,
    batch_stream,
    number_ids,
    to_device,
)
from wordmask.model.train.small_model import small_model, small_tokenizer, warm_start

LOG_EVERY = 50  # steps


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Part of the run: how long, on what, how fast. `n_objects` is (fewest, most) objects of a
    scene; `large_share` the share of scenes large enough to be tiled; `path_every` the steps from
    one with whole paths to the next. Questions are cheap where their answers end after the size:
    ten about an image cost a third more than five."""

    name: str
    steps: int
    images: int
    queries: int
    n_objects: tuple[int, int]
    learning_rate: float
    large_share: float = 0.0
    path_every: int = 1


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    seed: int = 0
    phases: tuple[Phase, ...] = (
        Phase(
            name="vision", steps=3000, images=32, queries=1, n_objects=(2, 7), learning_rate=1e-3
        ),
        Phase(
            name="box",
            steps=2500,
            images=8,
            queries=10,
            n_objects=(2, 7),
            learning_rate=1e-3,
            path_every=8,
        ),
        Phase(
            name="path",
            steps=6000,
            images=8,
            queries=8,
            n_objects=(2, 7),
            learning_rate=7e-4,
            large_share=0.12,
            path_every=3,
        ),
    )
    rate: float = (
        1.0  # times the learning rates of the phases; less for a model that can do much already
    )
    warmup: int = 200
    average: float = 0.998  # of the running mean of the weights, how much a step leaves of it
    weight_decay: float = 0.02
    checkpoint_every: int = 250
    workers: int = 1
    dtype: str = "float32"
    scenes: str = "fetched"  # a source of `SceneDataset`
    freeze_vision: bool = False  # a refiner head trained on the encoder stays valid then
    model: str | None = None  # to add_lora, instead of the small one
    lora_rank: int = 16  # of a model that is adapted

    def __post_init__(self) -> None:
        if self.model is not None and any(
            phase.name != "path" and phase.steps for phase in self.phases
        ):
            raise ValueError(
                "phases: a model that is adapted learns by phase path alone; give the others 0"
                " steps"
            )
        if self.freeze_vision and any(
            phase.name == "vision" and phase.steps for phase in self.phases
        ):
            raise ValueError("freeze_vision leaves phase vision nothing to learn: give it 0 steps")


ONE_BOX = (
    1e-5  # variance of box coordinates (unit of image), up to which they are one object's: rounding
)


class Auxiliary(nn.Module):
    """Heads that exist in training only."""

    def __init__(self, vision_dim: int, text_dim: int) -> None:
        super().__init__()
        self.patch = nn.Linear(vision_dim, sum(N_CLASSES))
        self.box = nn.Linear(vision_dim, 4)
        self.query = nn.Linear(text_dim, text_dim)
        self.key = nn.Linear(text_dim, text_dim)
        self.place = nn.Linear(text_dim, 3 * text_dim)
        self.word_query = nn.Linear(text_dim, text_dim)
        self.word_key = nn.Linear(text_dim, text_dim)
        self.name = nn.Linear(text_dim, len(NAMES))
        self.phrase_box = nn.Linear(text_dim, 4)
        self.anchor_box = nn.Linear(text_dim, 4)
        self.seen = nn.Linear(text_dim, sum(N_CLASSES))

    def patch_losses(self, final_IPD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What each patch shows. Boxes count only where there is an object."""
        owned = batch.patch_labels[..., 0] > 0
        attributes, ranks = _label_losses(self.patch(final_IPD), batch)
        box = F.smooth_l1_loss(
            self.box(final_IPD).float()[owned], batch.patch_box[owned], beta=0.05
        )
        return {"patch": attributes, "rank": ranks, "patch_box": box}

    def seen_losses(self, image_IPD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same of image tokens, but for the boxes: see `place_losses`."""
        attributes, ranks = _label_losses(self.seen(image_IPD), batch)
        return {"seen": attributes, "seen_rank": ranks}

    def pointer_loss(self, query_IKD: Tensor, prefix_IPD: Tensor, share_IKP: Tensor) -> Tensor:
        """Cross-entropy of the query's attention over the prefix against the share of the target in
        each of its tokens.
        """
        scores = torch.einsum("ikd,ipd->ikp", self.query(query_IKD), self.key(prefix_IPD)).float()
        return -(share_IKP * (scores * query_IKD.shape[-1] ** -0.5).log_softmax(-1)).sum(-1).mean()

    def word_loss(self, words_IKTD: Tensor, image_IPD: Tensor, batch: Batch) -> Tensor:
        """Each word for an attribute points at the patches that have it, wherever there is one."""
        scores = torch.einsum(
            "iktd,ipd->iktp", self.word_query(words_IKTD), self.word_key(image_IPD)
        ).float()
        fits = batch.word_fits / batch.word_fits.sum(-1, keepdim=True).clamp(min=1)
        meant = batch.word_fits.any(-1)
        return (
            -(fits * (scores * words_IKTD.shape[-1] ** -0.5).log_softmax(-1)).sum(-1)[meant].mean()
        )

    def phrase_box_losses(
        self, words_IKTD: Tensor, asked_IKD: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The box of what a name, with its colour, fits, of those that fit one object alone: at its
        token; and of an expression's last name, where it is not the first, at the last prompt
        token: a relation is to that."""
        boxes, alone = lone_boxes(batch)
        last = (
            batch.is_phrase * torch.arange(batch.is_phrase.shape[-1], device=boxes.device)
        ).amax(-1, keepdim=True)
        related = alone.gather(2, last)[..., 0] & (batch.is_phrase.sum(-1) > 1)
        anchors = boxes.gather(2, last[..., None].expand(-1, -1, -1, 4))[:, :, 0]
        return {
            "phrase_box": _box_loss(self.phrase_box(words_IKTD), boxes, alone),
            "anchor_box": _box_loss(self.anchor_box(asked_IKD), anchors, related),
        }

    def place_losses(
        self, image_IPD: Tensor, batch: Batch, region: Region, soft: SoftTargets
    ) -> Tensor:
        """Each object's box from its image tokens, through the region decoders themselves."""
        owned = batch.patch_labels[..., 0] > 0
        x, y, size = self.place(image_IPD[owned]).chunk(3, dim=-1)
        cx, cy, w, h = batch.patch_box[owned].unbind(-1)
        n_coord, n_size = region.config.coord_out_dim, region.config.size_out_dim // 2
        coords = [
            soft.bins(region.coord_logits(code), value * (n_coord - 1), soft.coord_sigma)
            for code, value in ((x, cx), (y, cy))
        ]
        octaves = (torch.stack([w, h], dim=-1).log2() / SIZE_OCTAVES + 1) * (n_size - 1)
        return sum(coords) + soft.bins(
            region.size_logits(size).flatten(0, 1), octaves.flatten(), soft.size_sigma
        )


def _label_losses(logits_IPC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of name, colour and size, summed; and of the ranks, their mean, which count only where there
    is an object.
    """
    parts = logits_IPC.float().split(N_CLASSES, dim=-1)
    owned = batch.patch_labels[..., 0] > 0
    attributes = [
        F.cross_entropy(part.flatten(0, 1), batch.patch_labels[..., c].flatten())
        for c, part in enumerate(parts[:3])
    ]
    ranks = [
        F.cross_entropy(part[owned], batch.patch_labels[..., c][owned])
        for c, part in enumerate(parts[3:], start=3)
    ]
    return torch.stack(attributes).sum(), torch.stack(ranks).mean()


def lone_boxes(batch: Batch) -> tuple[Tensor, Tensor]:
    """Boxes (I, K, T, 4) of what the names, with their colours, fit; and (I, K, T) of which tokens
    that is one object.
    """
    shares, boxes = batch.phrase_share[..., 1:], batch.patch_box.nan_to_num()
    means = torch.einsum("iktp,ipc->iktc", shares, boxes)
    spread = torch.einsum("iktp,ipc->iktc", shares, boxes.square()) - means.square()
    return means, batch.is_phrase & (batch.phrase_share[..., 0] == 0) & (spread < ONE_BOX).all(-1)


def _box_loss(found_N4: Tensor, boxes_N4: Tensor, counts_N: Tensor) -> Tensor:
    """Mean over the boxes that count; nothing where none does."""
    off = F.smooth_l1_loss(found_N4.float(), boxes_N4, beta=0.05, reduction="none").mean(-1)
    return (off * counts_N).sum() / counts_N.sum().clamp(min=1)


class SoftTargets(nn.Module):
    """Cross-entropy against a Gaussian over neighbouring classes."""

    def __init__(
        self,
        numbers: list[int],
        number_sigma: float = 12.0,
        coord_sigma: float = 6.0,
        size_sigma: float = 10.0,
    ) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers))
        self.number_sigma, self.coord_sigma, self.size_sigma = number_sigma, coord_sigma, size_sigma

    def bins(self, logits_NB: Tensor, target_N: Tensor, sigma: float) -> Tensor:
        place = torch.arange(logits_NB.shape[-1], device=logits_NB.device)
        weight = (-0.5 * ((place - target_N[:, None]) / sigma) ** 2).softmax(-1)
        return -(weight * logits_NB.float().log_softmax(-1)).sum(-1).mean()

    def tokens(self, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of number tokens (softened) and of all other tokens."""
        first, last = self.numbers[0], self.numbers[-1]  # numbers are consecutive ids
        is_number = (target_N >= first) & (target_N <= last)
        log_p = logits_NV.float().log_softmax(-1)
        plain = F.nll_loss(log_p[~is_number], target_N[~is_number])
        if not is_number.any():
            return plain.new_zeros(()), plain
        log_p_number = log_p[is_number][:, self.numbers]
        place = torch.arange(log_p_number.shape[-1], device=log_p.device)
        weight = (
            -0.5 * ((place - (target_N[is_number] - first)[:, None]) / self.number_sigma) ** 2
        ).softmax(-1)
        return -(weight * log_p_number).sum(-1).mean(), plain


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One pass over packed queries: the stream of queries (I, K, T, D), the stream after each block
    (I, S, D), and the attention head `LOOK_HEAD` of blocks `PHRASE_LAYER` and `LOOK_LAYER`, by
    block: its queries and keys, each (I, S, d)."""

    hidden: Tensor
    streams: list[Tensor]
    looks: dict[int, tuple[Tensor, Tensor]]

    def prefix_scores(self, layer: int, batch: Batch) -> Tensor:
        """(I, K, T, 1 + P) of that head: what each query token makes of each token of the prefix,
        before the softmax.
        """
        q, k = self.looks[layer]
        prefix = batch.target_share.shape[-1]
        queries = q[:, prefix:].unflatten(1, batch.ids.shape[1:])
        return torch.einsum("iktd,ipd->iktp", queries, k[:, :prefix]).float() * q.shape[-1] ** -0.5


def packed_stream(model: Moondream, features: CropFeatures, batch: Batch) -> Tensor:
    """All queries of each image in one pass over [prefix | query 1 | query 2 | ...]: the stream of
    the queries (I, K, T, D).
    """
    text, region = model.text, model.region
    images, queries, length = batch.ids.shape
    image_IPD = model.vision.project(features.final, batch.tilings)
    bos = text.embed(torch.zeros(images, 1, dtype=torch.long, device=image_IPD.device))
    x = text.embed(batch.ids)
    x = torch.where(
        (batch.ids == COORD_ID)[..., None],
        region.encode_coord(batch.coords[..., None]).to(x.dtype),
        x,
    )
    x = torch.where(
        (batch.ids == SIZE_ID)[..., None], region.encode_size(batch.sizes).to(x.dtype), x
    )
    packed = torch.cat([bos, image_IPD.to(x.dtype), x.flatten(1, 2)], dim=1)
    prefix = 1 + image_IPD.shape[1]
    positions, mask = packed_layout(prefix, queries, length, packed.device)
    hidden = text(packed, positions.expand(images, -1), mask)
    return hidden[:, prefix:].unflatten(1, (queries, length))


def forward_packed(model: Moondream, features: CropFeatures, batch: Batch) -> Packed:
    """`packed_stream`, and what the auxiliary losses look at on the way."""
    streams: list[Tensor] = []
    looks: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        q, k, _ = module.heads(*args)
        looks[layer] = q[:, LOOK_HEAD], k[:, LOOK_HEAD]

    hooks = [
        block.register_forward_hook(lambda _m, _i, out: streams.append(out))
        for block in model.text.blocks
    ]
    hooks += [
        model.text.blocks[layer].attn.register_forward_pre_hook(partial(keep, layer))
        for layer in (PHRASE_LAYER, LOOK_LAYER)
    ]
    hidden = packed_stream(model, features, batch)
    for hook in hooks:
        hook.remove()
    return Packed(hidden=hidden, streams=streams, looks=looks)


PHRASE_LAYER, LOOK_LAYER, LOOK_HEAD = 2, 5, 0
LOOK_TOKENS = 1 + BOX_TOKENS + 4  # the last prompt token, the box, and M x y L


def look_loss(packed: Packed, batch: Batch) -> Tensor:
    """The head's attention over the prefix, against the share of the target in each of its tokens;
    of what is absent, at the last prompt token alone."""
    scores = packed.prefix_scores(LOOK_LAYER, batch)
    after = torch.arange(LOOK_TOKENS, device=scores.device)
    place = (batch.pointer[..., None] + after).clamp(max=scores.shape[2] - 1)
    scores = scores.gather(2, place[..., None].expand(-1, -1, -1, scores.shape[-1]))
    counts = (batch.target_name != IGNORE)[..., None] | (after == 0)
    return -(batch.target_share[:, :, None] * scores.log_softmax(-1)).sum(-1)[counts].mean()


def phrase_loss(packed: Packed, batch: Batch) -> Tensor:
    """The head's attention over the prefix at the names, against the patches that name and colour
    fit.
    """
    scores = packed.prefix_scores(PHRASE_LAYER, batch)
    return -(batch.phrase_share * scores.log_softmax(-1)).sum(-1)[batch.is_phrase].mean()


COORD_ID, SIZE_ID = 5, 6


def packed_layout(
    prefix: int, queries: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions (1, S) and mask (1, 1, S, S) of one prefix and `queries` queries of `length` tokens
    that see it and themselves.
    """
    owner = torch.cat(
        [
            torch.full((prefix,), -1, device=device),
            torch.arange(queries, device=device).repeat_interleave(length),
        ]
    )
    position = torch.cat(
        [
            torch.arange(prefix, device=device),
            (prefix + torch.arange(length, device=device)).repeat(queries),
        ]
    )
    same = owner[:, None] == owner[None, :]
    causal = position[None, :] <= position[:, None]
    in_prefix = owner[None, :] == -1
    mask = in_prefix | (same & causal)
    return position[None], mask[None, None]


WORD_LAYER = 1
# after it the last prompt token knows where what a relation is to lies, and image tokens hold boxes
ANCHOR_LAYER = 3
# After these blocks the last prompt token should know where to look. A block's two halves run
# beside each other, so that it takes the block after `ANCHOR_LAYER` to make a place to look at
# (near that, of this name) of the two; later blocks read the box there.
POINTER_LAYERS = (2, 3, 4)


def losses(
    model: Moondream, auxiliary: Auxiliary | None, soft: SoftTargets, batch: Batch, phase: Phase
) -> dict[str, Tensor]:
    """Every loss of a step, by name; the step minimises their weighted sum."""
    if auxiliary is None:
        with torch.no_grad():
            features = model.vision(
                normalise(batch.crops.numpy(), batch.ids.device, next(model.parameters()).dtype)
            )
        return token_losses(model, soft, batch, packed_stream(model, features, batch))
    dtype = next(model.parameters()).dtype
    features = model.vision(normalise(batch.crops.numpy(), batch.ids.device, dtype))
    first = torch.tensor(
        [0] + [1 if t == (1, 1) else 1 + t[0] * t[1] for t in batch.tilings]
    ).cumsum(0)[:-1]
    found = (
        auxiliary.patch_losses(features.final[first], batch) if features.final.requires_grad else {}
    )
    if phase.name == "vision":
        return found
    packed = forward_packed(model, features, batch)
    hidden = packed.hidden
    prefix = 1 + model.vision.config.n_tokens
    index = batch.pointer[..., None, None].expand(-1, -1, 1, hidden.shape[-1])
    asked = [
        stream[:, prefix:].unflatten(1, batch.ids.shape[1:]).gather(2, index)[:, :, 0]
        for stream in packed.streams
    ]
    for layer in POINTER_LAYERS:
        found[f"point{layer}"] = auxiliary.pointer_loss(
            asked[layer], packed.streams[layer][:, :prefix], batch.target_share
        )
    words = packed.streams[WORD_LAYER]
    found["word"] = auxiliary.word_loss(
        words[:, prefix:].unflatten(1, batch.ids.shape[1:]), words[:, 1:prefix], batch
    )
    found["place"] = auxiliary.place_losses(
        packed.streams[ANCHOR_LAYER][:, 1:prefix], batch, model.region, soft
    )
    found |= auxiliary.seen_losses(packed.streams[ANCHOR_LAYER][:, 1:prefix], batch)
    found["look"] = look_loss(packed, batch)
    found["phrase"] = phrase_loss(packed, batch)
    phrases = packed.streams[PHRASE_LAYER][:, prefix:].unflatten(1, batch.ids.shape[1:])
    found |= auxiliary.phrase_box_losses(phrases, asked[ANCHOR_LAYER], batch)
    size_token = (
        (batch.pointer + BOX_TOKENS)
        .clamp(max=hidden.shape[2] - 1)[..., None, None]
        .expand(-1, -1, 1, hidden.shape[-1])
    )
    names = auxiliary.name(hidden.gather(2, size_token)[:, :, 0]).float()
    found["name"] = F.cross_entropy(
        names.flatten(0, 1), batch.target_name.flatten(), ignore_index=IGNORE
    )
    return found | token_losses(model, soft, batch, hidden)


def token_losses(
    model: Moondream, soft: SoftTargets, batch: Batch, hidden: Tensor
) -> dict[str, Tensor]:
    """Of coordinates, sizes, the path's numbers and all other tokens, of these the answers' first
    ones once more: whether there is anything. `hidden` is the stream of `packed_stream`."""
    found: dict[str, Tensor] = {}
    wants_coord, wants_size, wants_id = (
        batch.next_coord >= 0,
        batch.next_size[..., 0] >= 0,
        batch.next_id != IGNORE,
    )
    found["coord"] = soft.bins(
        model.region.coord_logits(hidden[wants_coord]),
        batch.next_coord[wants_coord],
        soft.coord_sigma,
    )
    size_logits, size_bins = (
        model.region.size_logits(hidden[wants_size]),
        batch.next_size[wants_size],
    )
    found["size"] = soft.bins(size_logits.flatten(0, 1), size_bins.flatten(), soft.size_sigma)
    found["number"], found["token"] = soft.tokens(
        model.text.logits(hidden[wants_id]), batch.next_id[wants_id]
    )
    first = batch.pointer[..., None]
    answers = model.text.logits(
        hidden.gather(2, first[..., None].expand(-1, -1, -1, hidden.shape[-1]))
    ).float()
    found["presence"] = F.cross_entropy(
        answers.flatten(0, 2), batch.next_id.gather(2, first).flatten()
    )
    return found


WEIGHTS = {
    "patch": 1.0,
    "rank": 1.0,
    "patch_box": 20.0,
    "point2": 0.5,
    "point3": 0.5,
    "point4": 0.5,
    "place": 0.3,
    "seen": 0.5,
    "seen_rank": 1.0,
    "look": 0.5,
    "phrase": 0.5,
    "phrase_box": 20.0,
    "anchor_box": 20.0,
    "word": 1.0,
    "name": 0.5,
    "coord": 1.0,
    "size": 1.0,
    "number": 1.0,
    "token": 1.0,
    "presence": 1.0,
}


@dataclass
class State:
    """What a checkpoint holds: as `model` the running mean of the weights, which all that comes
    after takes; as `weights` the last ones, which the stage itself goes on from."""

    step: int
    model: MoondreamSegmentation
    auxiliary: Auxiliary | None
    optimizer: torch.optim.Optimizer
    adapted: str | None = None  # the model that is adapted
    lora_rank: int = 0

    def __post_init__(self) -> None:
        self.begin_mean()

    def begin_mean(self) -> None:
        """From the weights as they are."""
        self.mean = {
            name: value.clone() for name, value in trainable_state_dict(self.model).items()
        }
        self.mean_steps = 0

    @torch.no_grad()
    def update_mean(self, decay: float) -> None:
        """`decay` of what was, less in the first steps, where what was says little."""
        self.mean_steps += 1
        decay = min(decay, self.mean_steps / (self.mean_steps + 9))
        learned = trainable_state_dict(self.model)
        get_ema_multi_avg_fn(decay)(
            [self.mean[name] for name in learned], [*learned.values()], None
        )

    def save(self, path: Path) -> None:
        parts = {
            "model": self.mean,
            "weights": trainable_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.auxiliary is not None:
            parts["auxiliary"] = self.auxiliary.state_dict()
        save_checkpoint(
            path,
            step=self.step,
            mean_steps=self.mean_steps,
            adapted=self.adapted,
            lora_rank=self.lora_rank,
            **parts,
        )

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.step, self.mean_steps = saved["step"], saved["mean_steps"]
        load_trainable_state_dict(self.model, saved["weights"])
        self.mean = {name: value.to(self.model.device) for name, value in saved["model"].items()}
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(saved["auxiliary"])
        self.optimizer.load_state_dict(saved["optimizer"])


def learning_rate(step: int, settings: SftSettings) -> float:
    """Linear warm-up, then each phase a cosine from its peak: to three tenths at its end, to a
    hundredth in the last.
    """
    start = 0
    for phase in settings.phases:
        if step < start + phase.steps or phase is settings.phases[-1]:
            floor = 0.01 if phase is settings.phases[-1] else 0.3
            peak = settings.rate * phase.learning_rate
            return warmup_cosine(
                step - start, peak=peak, steps=phase.steps, warmup=settings.warmup, floor=floor
            )
        start += phase.steps
    raise AssertionError("unreachable")


def new_state(settings: SftSettings, tokenizer: PathTokenizer, device: torch.device) -> State:
    """The small model afresh, or a model that is adapted, before its first step."""
    if settings.model is not None:
        adapted = load_model(
            resolve_model(settings.model), device=device, dtype=getattr(torch, settings.dtype)
        )
        add_lora(adapted, settings.lora_rank)
        learned = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            learned, lr=1e-3, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        return State(0, adapted, None, optimizer, settings.model, settings.lora_rank)
    model = small_model(tokenizer, settings.seed).to(device)
    auxiliary = Auxiliary(model.config.vision.enc_dim, model.config.text.dim).to(device)
    parameters = [*model.model.parameters(), *auxiliary.parameters()]
    decay = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": decay, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return State(0, model, auxiliary, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98)))


def train(
    out: Path,
    settings: SftSettings,
    init: Path | None = None,
    device: torch.device | str = "cpu",
    tell: OnProgress = ignore_progress,
) -> State:
    """Train to the last step of the last phase: from the checkpoint in `out` if there is one, else
    from the weights in the model folder `init` if it is given, else afresh."""
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = (
        small_tokenizer()
        if settings.model is None
        else load_tokenizer(resolve_model(settings.model))
    )
    tokenizer.save(out / TOKENIZER_FILE)
    state = new_state(settings, tokenizer, torch.device(device))
    if (out / "last.pt").exists():
        state.load(out / "last.pt")
    elif init is not None:
        warm_start(state.model, tokenizer, str(init))
        state.begin_mean()
    if settings.model is None:
        state.model.model.vision.requires_grad_(not settings.freeze_vision)
    first = process_rank() == 0
    console = Console(stderr=True, quiet=not first)
    console.print(f"{parameter_count(state.model) / 1e6:.2f} M parameters, from step {state.step}")
    start = 0
    with (
        progress_bar(console) as progress,
        (out / "log.csv" if first else Path(os.devnull)).open("a", newline="") as log,
    ):
        for phase in settings.phases:
            if state.step < start + phase.steps:
                _train_phase(state, phase, start, settings, tokenizer, out, progress, log, tell)
            start += phase.steps
    return state


def _train_phase(
    state: State,
    phase: Phase,
    start: int,
    settings: SftSettings,
    tokenizer: PathTokenizer,
    out: Path,
    progress: Progress,
    log,
    tell: OnProgress,
) -> None:
    soft = SoftTargets(number_ids(tokenizer)).to(state.model.device)
    steps = range(state.step, start + phase.steps)
    config = state.model.config
    dataset = SceneBatches(
        config=config,
        tokenizer=tokenizer,
        questions=SceneDataset(settings.scenes, side=config.vision.crop_size),
        seed=settings.seed,
        steps=steps,
        images=phase.images,
        queries=phase.queries,
        path_every=phase.path_every,
        n_objects=phase.n_objects,
        large_share=phase.large_share,
        process=process_rank(),
    )
    task = progress.add_task(phase.name, total=phase.steps, completed=state.step - start)
    writer, sums, began = csv.writer(log), {}, time.perf_counter()
    for batch in batch_stream(dataset, settings.workers):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, settings)
        found = _step(state, soft, to_device(batch, state.model.device), phase, settings)
        state.step += 1
        sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        progress.update(task, advance=1)
        if state.step % LOG_EVERY == 0:
            rate = (time.perf_counter() - began) / LOG_EVERY
            means = {name: total / LOG_EVERY for name, total in sums.items()}
            writer.writerow(
                [
                    phase.name,
                    state.step,
                    f"s_per_step={rate:.3f}",
                    *(f"{name}={mean:.4f}" for name, mean in means.items()),
                ]
            )
            log.flush()
            tell(phase.name, state.step - start, phase.steps, means)
            sums, began = {}, time.perf_counter()
        if process_rank() == 0 and (
            state.step % settings.checkpoint_every == 0 or state.step == start + phase.steps
        ):
            state.save(out / "last.pt")


def _step(
    state: State, soft: SoftTargets, batch: Batch, phase: Phase, settings: SftSettings
) -> dict[str, float]:
    with torch.autocast(
        batch.ids.device.type,
        dtype=getattr(torch, settings.dtype),
        enabled=settings.dtype != "float32",
    ):
        found = losses(state.model.model, state.auxiliary, soft, batch, phase)
    total = sum(WEIGHTS[name] * value for name, value in found.items())
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    learned = [p for g in state.optimizer.param_groups for p in g["params"]]
    average_gradients(learned)
    nn.utils.clip_grad_norm_(learned, 1.0)
    state.optimizer.step()
    state.update_mean(settings.average)
    return {name: value.item() for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of checkpoints and log; an existing one is resumed",
    )
    parser.add_argument("--seed", type=int, default=SftSettings.seed)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default=SftSettings.dtype,
        help="of matrix products (autocast)",
    )
    parser.add_argument(
        "--workers", type=int, default=SftSettings.workers, help="processes that draw scenes"
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs=3,
        metavar=("VISION", "BOX", "PATH"),
        help="steps of the three phases",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=SftSettings.rate,
        help="times the learning rates of the phases; with --init, 0.5",
    )
    parser.add_argument(
        "--init", type=Path, help="model folder whose weights a new run starts from"
    )
    parser.add_argument(
        "--scenes", choices=SOURCES, default=SftSettings.scenes, help="what scenes are made of"
    )
    parser.add_argument("--freeze-vision", action="store_true", help="train the decoder only")
    parser.add_argument(
        "--model",
        help="model of any size to adapt by LoRA, instead of the small one; --steps 0 0 N",
    )
    parser.add_argument("--lora-rank", type=int, default=SftSettings.lora_rank, help="of --model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = join_processes(args.device)
    phases = SftSettings.phases
    if args.steps:
        phases = tuple(
            replace(phase, steps=steps) for phase, steps in zip(phases, args.steps, strict=True)
        )
    settings = SftSettings(
        seed=args.seed,
        phases=phases,
        rate=args.rate,
        dtype=args.dtype,
        workers=args.workers,
        scenes=args.scenes,
        freeze_vision=args.freeze_vision,
        model=args.model,
        lora_rank=args.lora_rank,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "settings.txt").write_text(repr(asdict(settings)))
    train(args.out, settings, args.init, device)


if __name__ == "__main__":
    main()
