"""Auxiliary losses of the supervised stage: heads and targets that exist in training only.

Shapes: I images, K queries of an image, T tokens of a query, P image tokens, D width,
C classes of the patch labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import BOX_TOKENS
from wordmask.model.nn.region import SIZE_OCTAVES, Region
from wordmask.model.train.sft.batch import IGNORE, SceneBatch
from wordmask.model.train.sft.labels import N_CLASSES, NAME_COLUMN, NAMES, SIZE_COLUMN
from wordmask.model.train.sft.packing import LOOK_LAYER, PHRASE_LAYER, DecoderPass
from wordmask.model.train.sft.soft_targets import SoftTargets

ANSWERED_TOKENS = 1 + BOX_TOKENS + 4  # the last prompt token, the box, and M x y L
ONE_BOX = 1e-5  # variance up to which boxes (unit of image) are one object's: rounding
SMOOTH_L1_BETA = 0.05  # unit of image


class AuxiliaryHeads(nn.Module):
    """Linear heads on the vision features and on the decoder's stream."""

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

    def patch_losses(self, final_IPD: Tensor, batch: SceneBatch) -> dict[str, Tensor]:
        """Return the losses of what each patch shows; boxes count where there is an object."""
        attributes, ranks = _label_losses(self.patch(final_IPD), batch)
        owned = _is_owned(batch)
        boxes = self.box(final_IPD).float()[owned]
        true_boxes = batch.patch_box[owned]
        box = F.smooth_l1_loss(boxes, true_boxes, beta=SMOOTH_L1_BETA)
        return {"patch": attributes, "rank": ranks, "patch_box": box}

    def seen_losses(self, image_IPD: Tensor, batch: SceneBatch) -> dict[str, Tensor]:
        """Return the losses of what each image token shows; `place_loss` is that of its box."""
        attributes, ranks = _label_losses(self.seen(image_IPD), batch)
        return {"seen": attributes, "seen_rank": ranks}

    def pointer_loss(self, query_IKD: Tensor, prefix_IPD: Tensor, share_IKP: Tensor) -> Tensor:
        """Return the cross-entropy of the queries' attention over the prefix.

        Its target is the share of the referred object in each prefix token.
        """
        queries = self.query(query_IKD)
        keys = self.key(prefix_IPD)
        scores = torch.einsum("ikd,ipd->ikp", queries, keys).float()
        scale = query_IKD.shape[-1] ** -0.5
        return attention_loss(scores * scale, share_IKP).mean()

    def word_loss(self, words_IKTD: Tensor, image_IPD: Tensor, batch: SceneBatch) -> Tensor:
        """Return the loss of attribute words that point at the patches they fit.

        Words that fit no patch do not count.
        """
        queries = self.word_query(words_IKTD)
        keys = self.word_key(image_IPD)
        scores = torch.einsum("iktd,ipd->iktp", queries, keys).float()
        scale = words_IKTD.shape[-1] ** -0.5
        count = batch.word_fits.sum(-1, keepdim=True)
        share = batch.word_fits / count.clamp(min=1)
        fits_something = batch.word_fits.any(-1)
        return attention_loss(scores * scale, share)[fits_something].mean()

    def phrase_box_losses(
        self, words_IKTD: Tensor, prompt_end_IKD: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """Return the losses of the boxes of what names, with their colours, fit.

        Those count that fit one object alone: `phrase_box` at the name's token, and `anchor_box` at
        the last prompt token, of the expression's last name where it is not the first: a relation
        is to that.
        """
        boxes, alone = lone_boxes(batch)
        last = _last_phrase(batch)
        last_is_alone = alone.gather(2, last)[..., 0]
        has_relation = batch.is_phrase.sum(-1) > 1
        last_box_index = last[..., None].expand(-1, -1, -1, 4)
        last_boxes = boxes.gather(2, last_box_index)[:, :, 0]
        phrase_boxes = self.phrase_box(words_IKTD)
        anchor_boxes = self.anchor_box(prompt_end_IKD)
        return {
            "phrase_box": _box_loss(phrase_boxes, boxes, alone),
            "anchor_box": _box_loss(anchor_boxes, last_boxes, last_is_alone & has_relation),
        }

    def place_loss(
        self, image_IPD: Tensor, batch: SceneBatch, region: Region, soft: SoftTargets
    ) -> Tensor:
        """Return the loss of objects' boxes, read from image tokens by the region decoders."""
        owned = _is_owned(batch)
        codes = self.place(image_IPD[owned])
        x_code, y_code, size_code = codes.chunk(3, dim=-1)
        boxes_N4 = batch.patch_box[owned]
        x_loss = _coord_loss(x_code, boxes_N4[:, 0], region, soft)
        y_loss = _coord_loss(y_code, boxes_N4[:, 1], region, soft)
        return x_loss + y_loss + _size_loss(size_code, boxes_N4[:, 2:], region, soft)

    def name_loss(self, size_token_IKD: Tensor, batch: SceneBatch) -> Tensor:
        """Return the loss of the target's name at the size token."""
        logits = self.name(size_token_IKD).float().flatten(0, 1)
        names = batch.target_name.flatten()
        return F.cross_entropy(logits, names, ignore_index=IGNORE)


def _coord_loss(code_ND: Tensor, value_N: Tensor, region: Region, soft: SoftTargets) -> Tensor:
    """Return the loss of coordinates (unit of image) that are decoded from codes."""
    last_bin = region.config.coord_out_dim - 1
    logits = region.coord_logits(code_ND)
    return soft.bin_loss(logits, value_N * last_bin, soft.coord_sigma)


def _size_loss(code_ND: Tensor, size_N2: Tensor, region: Region, soft: SoftTargets) -> Tensor:
    """Return the loss of widths and heights (unit of image) that are decoded from codes."""
    last_bin = region.config.size_out_dim // 2 - 1
    bins = (size_N2.log2() / SIZE_OCTAVES + 1) * last_bin
    logits = region.size_logits(code_ND).flatten(0, 1)
    return soft.bin_loss(logits, bins.flatten(), soft.size_sigma)


def attention_loss(scores: Tensor, share: Tensor) -> Tensor:
    """Return the cross-entropy (...) of attention scores (..., P) against shares (..., P)."""
    return -(share * scores.log_softmax(-1)).sum(-1)


def _is_owned(batch: SceneBatch) -> Tensor:
    """Return of each patch (I, P) whether an object owns it."""
    return batch.patch_labels[..., NAME_COLUMN] > 0


def _last_phrase(batch: SceneBatch) -> Tensor:
    """Return the position of each query's last name, (I, K, 1); 0 where there is none."""
    length = batch.is_phrase.shape[-1]
    positions = torch.arange(length, device=batch.is_phrase.device)
    return (batch.is_phrase * positions).amax(-1, keepdim=True)


def _label_losses(logits_IPC: Tensor, batch: SceneBatch) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of name, colour and size, and the mean of those of the ranks.

    Ranks count only where there is an object.
    """
    owned = _is_owned(batch)
    by_column = logits_IPC.float().split(N_CLASSES, dim=-1)
    losses = []
    for column, logits in enumerate(by_column):
        labels = batch.patch_labels[..., column]
        if column > SIZE_COLUMN:
            losses.append(F.cross_entropy(logits[owned], labels[owned]))
        else:
            losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    n_attributes = SIZE_COLUMN + 1
    attributes = torch.stack(losses[:n_attributes])
    ranks = torch.stack(losses[n_attributes:])
    return attributes.sum(), ranks.mean()


def lone_boxes(batch: SceneBatch) -> tuple[Tensor, Tensor]:
    """Return the boxes of what names, with their colours, fit, and where that is one object.

    Returns:
        Boxes (I, K, T, 4), unit of image; and of which tokens they are one object's, (I, K, T).
    """
    shares = batch.phrase_share[..., 1:]
    boxes = batch.patch_box.nan_to_num()
    means = torch.einsum("iktp,ipc->iktc", shares, boxes)
    squares = torch.einsum("iktp,ipc->iktc", shares, boxes.square())
    variance = squares - means.square()
    is_one_box = (variance < ONE_BOX).all(-1)
    fits_something = batch.phrase_share[..., 0] == 0
    return means, batch.is_phrase & fits_something & is_one_box


def _box_loss(found_N4: Tensor, boxes_N4: Tensor, counts_N: Tensor) -> Tensor:
    """Return the mean over the boxes that count; 0 where none does."""
    errors = F.smooth_l1_loss(found_N4.float(), boxes_N4, beta=SMOOTH_L1_BETA, reduction="none")
    losses = errors.mean(-1) * counts_N
    return losses.sum() / counts_N.sum().clamp(min=1)


def look_loss(decoded: DecoderPass, batch: SceneBatch) -> Tensor:
    """Return the loss of the supervised head's attention while the box and `M x y L` are decoded.

    Its target is the share of the referred object in each prefix token. Of what is absent, the last
    prompt token alone counts.
    """
    scores = decoded.prefix_scores(LOOK_LAYER)
    offset = torch.arange(ANSWERED_TOKENS, device=scores.device)
    last = scores.shape[2] - 1
    index = (batch.pointer[..., None] + offset).clamp(max=last)
    index_IKTP = index[..., None].expand(-1, -1, -1, scores.shape[-1])
    share = batch.target_share[:, :, None]
    losses = attention_loss(scores.gather(2, index_IKTP), share)
    is_present = batch.target_name != IGNORE
    counts = is_present[..., None] | (offset == 0)
    return losses[counts].mean()


def phrase_loss(decoded: DecoderPass, batch: SceneBatch) -> Tensor:
    """Return the loss of the supervised head's attention at names.

    Its target are the patches that the name, with its colour, fits.
    """
    scores = decoded.prefix_scores(PHRASE_LAYER)
    losses = attention_loss(scores, batch.phrase_share)
    return losses[batch.is_phrase].mean()
