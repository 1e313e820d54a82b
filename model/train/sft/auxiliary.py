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
from wordmask.model.train.sft.labels import N_CLASSES, NAMES
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
        owned = _is_owned(batch)
        attributes, ranks = _label_losses(self.patch(final_IPD), batch)
        boxes = self.box(final_IPD).float()[owned]
        box = F.smooth_l1_loss(boxes, batch.patch_box[owned], beta=SMOOTH_L1_BETA)
        return {"patch": attributes, "rank": ranks, "patch_box": box}

    def seen_losses(self, image_IPD: Tensor, batch: SceneBatch) -> dict[str, Tensor]:
        """Return the losses of what each image token shows; `place_loss` is that of its box."""
        attributes, ranks = _label_losses(self.seen(image_IPD), batch)
        return {"seen": attributes, "seen_rank": ranks}

    def pointer_loss(self, query_IKD: Tensor, prefix_IPD: Tensor, share_IKP: Tensor) -> Tensor:
        """Return the cross-entropy of the queries' attention over the prefix.

        Its target is the share of the referred object in each prefix token.
        """
        scores = torch.einsum("ikd,ipd->ikp", self.query(query_IKD), self.key(prefix_IPD)).float()
        log_probs = (scores * query_IKD.shape[-1] ** -0.5).log_softmax(-1)
        return -(share_IKP * log_probs).sum(-1).mean()

    def word_loss(self, words_IKTD: Tensor, image_IPD: Tensor, batch: SceneBatch) -> Tensor:
        """Return the loss of attribute words that point at the patches they fit.

        Words that fit no patch do not count.
        """
        queries, keys = self.word_query(words_IKTD), self.word_key(image_IPD)
        scores = torch.einsum("iktd,ipd->iktp", queries, keys).float()
        log_probs = (scores * words_IKTD.shape[-1] ** -0.5).log_softmax(-1)
        fits = batch.word_fits / batch.word_fits.sum(-1, keepdim=True).clamp(min=1)
        return -(fits * log_probs).sum(-1)[batch.word_fits.any(-1)].mean()

    def phrase_box_losses(
        self, words_IKTD: Tensor, prompt_end_IKD: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """Return the losses of the boxes of what names, with their colours, fit.

        Those count that fit one object alone: `phrase_box` at the name's token, and `anchor_box` at
        the last prompt token, of the expression's last name where it is not the first: a relation
        is to that.
        """
        boxes, alone = lone_boxes(batch)
        positions = torch.arange(batch.is_phrase.shape[-1], device=boxes.device)
        last = (batch.is_phrase * positions).amax(-1, keepdim=True)
        related = alone.gather(2, last)[..., 0] & (batch.is_phrase.sum(-1) > 1)
        anchors = boxes.gather(2, last[..., None].expand(-1, -1, -1, 4))[:, :, 0]
        return {
            "phrase_box": _box_loss(self.phrase_box(words_IKTD), boxes, alone),
            "anchor_box": _box_loss(self.anchor_box(prompt_end_IKD), anchors, related),
        }

    def place_loss(
        self, image_IPD: Tensor, batch: SceneBatch, region: Region, soft: SoftTargets
    ) -> Tensor:
        """Return the loss of objects' boxes, read from image tokens by the region decoders."""
        owned = _is_owned(batch)
        x_code, y_code, size_code = self.place(image_IPD[owned]).chunk(3, dim=-1)
        cx, cy, w, h = batch.patch_box[owned].unbind(-1)
        last_coord = region.config.coord_out_dim - 1
        last_size = region.config.size_out_dim // 2 - 1
        x_loss = soft.bin_loss(region.coord_logits(x_code), cx * last_coord, soft.coord_sigma)
        y_loss = soft.bin_loss(region.coord_logits(y_code), cy * last_coord, soft.coord_sigma)
        size_bins = (torch.stack([w, h], dim=-1).log2() / SIZE_OCTAVES + 1) * last_size
        size_logits = region.size_logits(size_code).flatten(0, 1)
        size_loss = soft.bin_loss(size_logits, size_bins.flatten(), soft.size_sigma)
        return x_loss + y_loss + size_loss

    def name_loss(self, size_token_IKD: Tensor, batch: SceneBatch) -> Tensor:
        """Return the loss of the target's name at the size token."""
        logits = self.name(size_token_IKD).float().flatten(0, 1)
        return F.cross_entropy(logits, batch.target_name.flatten(), ignore_index=IGNORE)


def _is_owned(batch: SceneBatch) -> Tensor:
    """Return of each patch (I, P) whether an object owns it."""
    return batch.patch_labels[..., 0] > 0


def _label_losses(logits_IPC: Tensor, batch: SceneBatch) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of name, colour and size, and the mean of those of the ranks.

    Ranks count only where there is an object.
    """
    owned = _is_owned(batch)
    columns = zip(
        logits_IPC.float().split(N_CLASSES, dim=-1), batch.patch_labels.unbind(-1), strict=True
    )
    losses = []
    for index, (logits, labels) in enumerate(columns):
        if index < 3:
            losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        else:
            losses.append(F.cross_entropy(logits[owned], labels[owned]))
    return torch.stack(losses[:3]).sum(), torch.stack(losses[3:]).mean()


def lone_boxes(batch: SceneBatch) -> tuple[Tensor, Tensor]:
    """Return the boxes of what names, with their colours, fit, and where that is one object.

    Returns:
        Boxes (I, K, T, 4), unit of image; and of which tokens they are one object's, (I, K, T).
    """
    shares, boxes = batch.phrase_share[..., 1:], batch.patch_box.nan_to_num()
    means = torch.einsum("iktp,ipc->iktc", shares, boxes)
    spread = torch.einsum("iktp,ipc->iktc", shares, boxes.square()) - means.square()
    fits_something = batch.phrase_share[..., 0] == 0
    return means, batch.is_phrase & fits_something & (spread < ONE_BOX).all(-1)


def _box_loss(found_N4: Tensor, boxes_N4: Tensor, counts_N: Tensor) -> Tensor:
    """Return the mean over the boxes that count; 0 where none does."""
    losses = F.smooth_l1_loss(found_N4.float(), boxes_N4, beta=SMOOTH_L1_BETA, reduction="none")
    return (losses.mean(-1) * counts_N).sum() / counts_N.sum().clamp(min=1)


def look_loss(decoded: DecoderPass, batch: SceneBatch) -> Tensor:
    """Return the loss of the supervised head's attention while the box and `M x y L` are decoded.

    Its target is the share of the referred object in each prefix token. Of what is absent, the last
    prompt token alone counts.
    """
    scores = decoded.prefix_scores(LOOK_LAYER)
    offset = torch.arange(ANSWERED_TOKENS, device=scores.device)
    index = (batch.pointer[..., None] + offset).clamp(max=scores.shape[2] - 1)
    scores = scores.gather(2, index[..., None].expand(-1, -1, -1, scores.shape[-1]))
    counts = (batch.target_name != IGNORE)[..., None] | (offset == 0)
    losses = -(batch.target_share[:, :, None] * scores.log_softmax(-1)).sum(-1)
    return losses[counts].mean()


def phrase_loss(decoded: DecoderPass, batch: SceneBatch) -> Tensor:
    """Return the loss of the supervised head's attention at names.

    Its target are the patches that the name, with its colour, fits.
    """
    log_probs = decoded.prefix_scores(PHRASE_LAYER).log_softmax(-1)
    return -(batch.phrase_share * log_probs).sum(-1)[batch.is_phrase].mean()
