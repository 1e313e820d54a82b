"""All losses of a step of the supervised stage, and their weights.

Shapes: I images, K queries of an image, T tokens of a query, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wordmask.model.nn.config import BOX_TOKENS, TokenConfig
from wordmask.model.nn.image_crops import normalise
from wordmask.model.nn.moondream import Moondream
from wordmask.model.nn.region import Region
from wordmask.model.nn.vision import CropFeatures
from wordmask.model.train.sft.auxiliary import AuxiliaryHeads, look_loss, phrase_loss
from wordmask.model.train.sft.batch import IGNORE, SceneBatch
from wordmask.model.train.sft.packing import (
    PHRASE_LAYER,
    DecoderPass,
    decode_queries,
    observe_queries,
    token_at,
)
from wordmask.model.train.sft.soft_targets import SoftTargets

WEIGHTS = {
    "patch": 1.0,
    "rank": 1.0,
    "patch_box": 20.0,
    "point2": 0.5,
    "point3": 0.5,
    "point4": 0.5,
    "word": 1.0,
    "place": 0.3,
    "seen": 0.5,
    "seen_rank": 1.0,
    "look": 0.5,
    "phrase": 0.5,
    "phrase_box": 20.0,
    "anchor_box": 20.0,
    "name": 0.5,
    "coord": 1.0,
    "size": 1.0,
    "number": 1.0,
    "token": 1.0,
    "presence": 1.0,
}
WORD_LAYER = 1
# After this block the last prompt token knows where what a relation is to lies, and image tokens
# hold boxes.
ANCHOR_LAYER = 3
# After these blocks the last prompt token should know where to look. A block's two halves run
# beside each other, so that it takes the block after `ANCHOR_LAYER` to turn the two into what to
# look at (near that, of this name); later blocks read the box there.
POINTER_LAYERS = (2, 3, 4)


def scene_losses(
    model: Moondream,
    tokens: TokenConfig,
    heads: AuxiliaryHeads,
    soft: SoftTargets,
    batch: SceneBatch,
    *,
    vision_only: bool,
) -> dict[str, Tensor]:
    """Return the losses of a model that learns whole, by name.

    A frozen encoder has none of its own. `vision_only`: those of the encoder alone.
    """
    features = _encode(model, batch)
    losses: dict[str, Tensor] = {}
    if features.final.requires_grad:
        overview = features.final[_overview_crops(batch.tilings)]
        losses |= heads.patch_losses(overview, batch)
    if vision_only:
        return losses
    decoded = observe_queries(model, tokens, features, batch)
    losses |= _stream_losses(model, heads, soft, batch, decoded)
    return losses | answer_losses(model, soft, batch, decoded.hidden)


def adapter_losses(
    model: Moondream, tokens: TokenConfig, soft: SoftTargets, batch: SceneBatch
) -> dict[str, Tensor]:
    """Return the losses of a model that learns through LoRA: those of its answers alone."""
    with torch.no_grad():
        features = _encode(model, batch)
    hidden = decode_queries(model, tokens, features, batch)
    return answer_losses(model, soft, batch, hidden)


def _encode(model: Moondream, batch: SceneBatch) -> CropFeatures:
    dtype = next(model.parameters()).dtype
    return model.vision(normalise(batch.crops.numpy(), batch.ids.device, dtype))


def _overview_crops(tilings: list[tuple[int, int]]) -> Tensor:
    """Return the index of each image's first crop, which shows all of it: (I,)."""
    first = 0
    indices = []
    for rows, columns in tilings:
        indices.append(first)
        n_tiles = rows * columns
        first += 1
        if n_tiles > 1:
            first += n_tiles
    return torch.tensor(indices)


def _stream_losses(
    model: Moondream,
    heads: AuxiliaryHeads,
    soft: SoftTargets,
    batch: SceneBatch,
    decoded: DecoderPass,
) -> dict[str, Tensor]:
    """Return the auxiliary losses of the decoder."""
    prompt_end = {}
    for layer in sorted({*POINTER_LAYERS, ANCHOR_LAYER}):
        prompt_end[layer] = token_at(decoded.of_queries(layer), batch.pointer)
    losses = {}
    for layer in POINTER_LAYERS:
        prefix = decoded.of_prefix(layer)
        loss = heads.pointer_loss(prompt_end[layer], prefix, batch.target_share)
        losses[f"point{layer}"] = loss
    words = decoded.of_queries(WORD_LAYER)
    losses["word"] = heads.word_loss(words, decoded.of_image(WORD_LAYER), batch)
    losses["place"] = heads.place_loss(decoded.of_image(ANCHOR_LAYER), batch, model.region, soft)
    losses |= heads.seen_losses(decoded.of_image(ANCHOR_LAYER), batch)
    losses["look"] = look_loss(decoded, batch)
    losses["phrase"] = phrase_loss(decoded, batch)
    phrases = decoded.of_queries(PHRASE_LAYER)
    losses |= heads.phrase_box_losses(phrases, prompt_end[ANCHOR_LAYER], batch)
    last = decoded.hidden.shape[2] - 1
    size_index = batch.pointer + BOX_TOKENS
    size_token = token_at(decoded.hidden, size_index.clamp(max=last))
    losses["name"] = heads.name_loss(size_token, batch)
    return losses


def answer_losses(
    model: Moondream, soft: SoftTargets, batch: SceneBatch, hidden_IKTD: Tensor
) -> dict[str, Tensor]:
    """Return the losses of coordinates, sizes, the path's numbers and all other tokens.

    `presence` counts the answers' first tokens once more: whether there is anything.
    """
    coord = _coord_loss(model.region, soft, batch, hidden_IKTD)
    size = _size_loss(model.region, soft, batch, hidden_IKTD)
    text = model.text
    has_id = batch.next_id != IGNORE
    id_logits = text.logits(hidden_IKTD[has_id])
    number, token = soft.token_losses(id_logits, batch.next_id[has_id])
    first_hidden = token_at(hidden_IKTD, batch.pointer)
    first_logits = text.logits(first_hidden).float()
    first_ids = batch.next_id.gather(2, batch.pointer[..., None])
    presence = F.cross_entropy(first_logits.flatten(0, 1), first_ids.flatten())
    return {
        "coord": coord,
        "size": size,
        "number": number,
        "token": token,
        "presence": presence,
    }


def _coord_loss(
    region: Region, soft: SoftTargets, batch: SceneBatch, hidden_IKTD: Tensor
) -> Tensor:
    has_coord = batch.next_coord >= 0
    logits = region.coord_logits(hidden_IKTD[has_coord])
    bins = batch.next_coord[has_coord]
    return soft.bin_loss(logits, bins, soft.coord_sigma)


def _size_loss(region: Region, soft: SoftTargets, batch: SceneBatch, hidden_IKTD: Tensor) -> Tensor:
    has_size = batch.next_size[..., 0] >= 0
    logits = region.size_logits(hidden_IKTD[has_size])
    logits_NB = logits.flatten(0, 1)
    bins = batch.next_size[has_size].flatten()
    return soft.bin_loss(logits_NB, bins, soft.size_sigma)
