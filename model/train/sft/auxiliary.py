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
from wordmask.model.train.sft.packing import (
    LOOK_LAYER,
    PHRASE_LAYER,
    DecoderPass,
    attention_scores,
    token_at,
    tokens_at,
)
from wordmask.model.train.sft.soft_targets import SoftTargets

ANSWERED_TOKENS = 1 + BOX_TOKENS + 4  # the last prompt token, the box, and M x y L
ONE_BOX = 1e-5  # variance up to which boxes (unit of image) are one object's: rounding
SMOOTH_L1_BETA = 0.05  # unit of image


class AuxiliaryHeads(nn.Module):
    """Linear heads on the vision features and on the decoder's stream."""

    def __init__(self, vision_dim: int, text_dim: int) -> None:
        super().__init__()
        n_classes = sum(N_CLASSES)
        self.patch = nn.Linear(vision_dim, n_classes)
        self.box = nn.Linear(vision_dim, 4)
        self.query = nn.Linear(text_dim, text_dim)
        self.key = nn.Linear(text_dim, text_dim)
        self.place = nn.Linear(text_dim, 3 * text_dim)
        self.word_query = nn.Linear(text_dim, text_dim)
        self.word_key = nn.Linear(text_dim, text_dim)
        self.name = nn.Linear(text_dim, len(NAMES))
        self.phrase_box = nn.Linear(text_dim, 4)
        self.anchor_box = nn.Linear(text_dim, 4)
        self.seen = nn.Linear(text_dim, n_classes)

    def patch_losses(self, final_IPD: Tensor, batch: SceneBatch) -> dict[str, Tensor]:
        """Return the losses of what each patch shows; boxes count where there is an object."""
        logits = self.patch(final_IPD)
        attributes, ranks = _label_losses(logits, batch)
        owned = _is_owned(batch)
        boxes = self.box(final_IPD).float()
        true_boxes = batch.patch_box[owned]
        box = F.smooth_l1_loss(boxes[owned], true_boxes, beta=SMOOTH_L1_BETA)
        return {
            "patch": attributes,
            "rank": ranks,
            "patch_box": box,
        }

    def seen_losses(self, image_IPD: Tensor, batch: SceneBatch) -> dict[str, Tensor]:
        """Return the losses of what each image token shows; `place_loss` is that of its box."""
        logits = self.seen(image_IPD)
        attributes, ranks = _label_losses(logits, batch)
        return {"seen": attributes, "seen_rank": ranks}

    def pointer_loss(self, query_IKD: Tensor, prefix_IPD: Tensor, share_IKP: Tensor) -> Tensor:
        """Return the cross-entropy of the queries' attention over the prefix.

        Its target is the share of the referred object in each prefix token.
        """
        queries = self.query(query_IKD)
        keys = self.key(prefix_IPD)
        scores = attention_scores(queries, keys)
        losses = attention_loss(scores, share_IKP)
        return losses.mean()

    def word_loss(self, words_IKTD: Tensor, image_IPD: Tensor, batch: SceneBatch) -> Tensor:
        """Return the loss of attribute words that point at the patches they fit.

        Words that fit no patch do not count.
        """
        queries = self.word_query(words_IKTD)
        keys = self.word_key(image_IPD)
        scores = attention_scores(queries, keys)
        fits = batch.word_fits
        count = fits.sum(-1, keepdim=True)
        share = fits / count.clamp(min=1)
        losses = attention_loss(scores, share)
        fits_something = fits.any(-1)
        return losses[fits_something].mean()

    def phrase_box_losses(
        self, words_IKTD: Tensor, prompt_end_IKD: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """Return the losses of the boxes of what names, with their colours, fit.

        Those count that fit one object alone: `phrase_box` at the name's token, and `anchor_box` at
        the last prompt token, of the expression's last name where it is not the first: a relation
        is to that.
        """
        boxes, alone = lone_boxes(batch)
        phrase_boxes = self.phrase_box(words_IKTD)
        anchor_boxes = self.anchor_box(prompt_end_IKD)
        phrase_loss = _box_loss(phrase_boxes, boxes, alone)
        last = _last_phrase(batch)
        last_boxes = token_at(boxes, last)
        last_is_alone = token_at(alone[..., None], last)[..., 0]
        n_names = batch.is_phrase.sum(-1)
        has_relation = n_names > 1
        counts = last_is_alone & has_relation
        anchor_loss = _box_loss(anchor_boxes, last_boxes, counts)
        return {"phrase_box": phrase_loss, "anchor_box": anchor_loss}

    def place_loss(
        self, image_IPD: Tensor, batch: SceneBatch, region: Region, soft: SoftTargets
    ) -> Tensor:
        """Return the loss of objects' boxes, read from image tokens by the region decoders."""
        owned = _is_owned(batch)
        codes = self.place(image_IPD[owned])
        x_code, y_code, size_code = codes.chunk(3, dim=-1)
        boxes_N4 = batch.patch_box[owned]
        cx, cy, *_ = boxes_N4.unbind(1)
        size_N2 = boxes_N4[:, 2:]
        x_loss = _coord_loss(x_code, cx, region, soft)
        y_loss = _coord_loss(y_code, cy, region, soft)
        size_loss = _size_loss(size_code, size_N2, region, soft)
        return x_loss + y_loss + size_loss

    def name_loss(self, size_token_IKD: Tensor, batch: SceneBatch) -> Tensor:
        """Return the loss of the target's name at the size token."""
        logits = self.name(size_token_IKD).float()
        names = batch.target_name.flatten()
        logits_NC = logits.flatten(0, 1)
        return F.cross_entropy(logits_NC, names, ignore_index=IGNORE)


def _coord_loss(code_ND: Tensor, value_N: Tensor, region: Region, soft: SoftTargets) -> Tensor:
    """Return the loss of coordinates (unit of image) that are decoded from codes."""
    last_bin = region.config.coord_out_dim - 1
    bins = value_N * last_bin
    logits = region.coord_logits(code_ND)
    return soft.bin_loss(logits, bins, soft.coord_sigma)


def _size_loss(code_ND: Tensor, size_N2: Tensor, region: Region, soft: SoftTargets) -> Tensor:
    """Return the loss of widths and heights (unit of image) that are decoded from codes."""
    last_bin = region.config.size_out_dim // 2 - 1
    octaves = size_N2.log2() / SIZE_OCTAVES
    bins = (octaves + 1) * last_bin
    logits = region.size_logits(code_ND)
    logits_NB = logits.flatten(0, 1)
    return soft.bin_loss(logits_NB, bins.flatten(), soft.size_sigma)


def attention_loss(scores: Tensor, share: Tensor) -> Tensor:
    """Return the cross-entropy (...) of attention scores (..., P) against shares (..., P)."""
    log_probs = scores.log_softmax(-1)
    return -(share * log_probs).sum(-1)


def _is_owned(batch: SceneBatch) -> Tensor:
    """Return of each patch (I, P) whether an object owns it."""
    name_IP = batch.patch_labels[..., NAME_COLUMN]
    return name_IP > 0


def _last_phrase(batch: SceneBatch) -> Tensor:
    """Return the position of each query's last name, (I, K); 0 where there is none."""
    is_phrase = batch.is_phrase
    length = is_phrase.shape[-1]
    positions = torch.arange(length, device=is_phrase.device)
    name_positions = is_phrase * positions
    return name_positions.amax(-1)


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
            logits_NC = logits[owned]
            labels_N = labels[owned]
        else:
            logits_NC = logits.flatten(0, 1)
            labels_N = labels.flatten()
        loss = F.cross_entropy(logits_NC, labels_N)
        losses.append(loss)
    n_attributes = SIZE_COLUMN + 1
    attributes = torch.stack(losses[:n_attributes])
    ranks = torch.stack(losses[n_attributes:])
    return attributes.sum(), ranks.mean()


def lone_boxes(batch: SceneBatch) -> tuple[Tensor, Tensor]:
    """Return the boxes of what names, with their colours, fit, and where that is one object.

    Returns:
        Boxes (I, K, T, 4), unit of image; and of which tokens they are one object's, (I, K, T).
    """
    boxes = batch.patch_box.nan_to_num()
    means = _phrase_means(boxes, batch)
    squares = _phrase_means(boxes.square(), batch)
    variance = squares - means.square()
    is_one_box = (variance < ONE_BOX).all(-1)
    share_of_none = batch.phrase_share[..., 0]
    fits_something = share_of_none == 0
    is_alone = batch.is_phrase & fits_something & is_one_box
    return means, is_alone


def _phrase_means(values_IPC: Tensor, batch: SceneBatch) -> Tensor:
    """Return the means of values over the patches that each name fits, (I, K, T, C)."""
    shares_IKTP = batch.phrase_share[..., 1:]
    return torch.einsum("iktp,ipc->iktc", shares_IKTP, values_IPC)


def _box_loss(found_N4: Tensor, boxes_N4: Tensor, counts_N: Tensor) -> Tensor:
    """Return the mean over the boxes that count; 0 where none does."""
    found = found_N4.float()
    errors = F.smooth_l1_loss(found, boxes_N4, beta=SMOOTH_L1_BETA, reduction="none")
    losses = errors.mean(-1) * counts_N
    n_boxes = counts_N.sum()
    return losses.sum() / n_boxes.clamp(min=1)


def look_loss(decoded: DecoderPass, batch: SceneBatch) -> Tensor:
    """Return the loss of the supervised head's attention while the box and `M x y L` are decoded.

    Its target is the share of the referred object in each prefix token. Of what is absent, the last
    prompt token alone counts.
    """
    scores = decoded.prefix_scores(LOOK_LAYER)
    offset = torch.arange(ANSWERED_TOKENS, device=scores.device)
    last = scores.shape[2] - 1
    index = batch.pointer[..., None] + offset
    answered = tokens_at(scores, index.clamp(max=last))
    share = batch.target_share[:, :, None]
    losses = attention_loss(answered, share)
    is_present = batch.target_name != IGNORE
    is_prompt_end = offset == 0
    counts = is_present[..., None] | is_prompt_end
    return losses[counts].mean()


def phrase_loss(decoded: DecoderPass, batch: SceneBatch) -> Tensor:
    """Return the loss of the supervised head's attention at names.

    Its target are the patches that the name, with its colour, fits.
    """
    scores = decoded.prefix_scores(PHRASE_LAYER)
    losses = attention_loss(scores, batch.phrase_share)
    return losses[batch.is_phrase].mean()
