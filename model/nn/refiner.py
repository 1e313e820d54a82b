"""The refiner head: image features and a coarse mask in, four candidate masks and their predicted
IoUs out (facts, section 7).

Shapes: B crops, P patches of a crop (G x G), D encoder width, C head width, M candidate masks, Q
tokens (M + 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import RefinerConfig


class Candidates(NamedTuple):
    """`logits` (B, M, size, size) of the masks, `iou` (B, M) predicted, raw: not confined to
    0..1.
    """

    logits: Tensor
    iou: Tensor


class Refinement(NamedTuple):
    """Result of the iterations. `probs` (B, size, size) in 0..1, `iou` (B,) predicted for it,
    `stability` (B,): IoU of the last two iterations' thresholded masks (1 where both are empty),
    `iterations` (B,): how many the row took."""

    probs: Tensor
    iou: Tensor
    stability: Tensor
    iterations: Tensor


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeatureFusion(nn.Module):
    """Early and projected final features to one map (the paper's high-quality fusion)."""

    def __init__(self, enc_dim: int, dim: int) -> None:
        super().__init__()
        self.early_proj = nn.Sequential(
            nn.Linear(enc_dim, dim), nn.LayerNorm(dim, eps=1e-5), nn.GELU()
        )
        self.fusion = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 1),
            nn.GroupNorm(32, dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GroupNorm(32, dim),
            nn.GELU(),
        )

    def forward(self, early_BPD: Tensor, final_BCGG: Tensor) -> Tensor:
        early_BCGG = self.early_proj(early_BPD).transpose(1, 2).unflatten(2, final_BCGG.shape[-2:])
        return self.fusion(torch.cat([early_BCGG, final_BCGG], dim=1))


class MaskEncoder(nn.Module):
    """A mask (B, 1, size, size) to a map of the head's width at a sixteenth of the size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = (1, dim // 16, dim // 8, dim // 4, dim)
        for index, groups in enumerate((1, 8, 16, 32)):
            # Narrow heads have fewer channels than the published number of groups.
            groups = min(groups, widths[index + 1])
            conv = nn.Conv2d(widths[index], widths[index + 1], 3, stride=2, padding=1)
            setattr(
                self,
                f"conv{index + 1}",
                nn.Sequential(conv, nn.GroupNorm(groups, widths[index + 1]), nn.GELU()),
            )

    def forward(self, mask_B1SS: Tensor) -> Tensor:
        return self.conv4(self.conv3(self.conv2(self.conv1(mask_B1SS))))


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, out)
    )


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image; the image attends to the tokens.
    Post-norm.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.output_self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.cross_attn_token_to_image = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim)
        )
        self.norm3 = nn.LayerNorm(dim, eps=1e-5)
        self.cross_attn_image_to_token = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm4 = nn.LayerNorm(dim, eps=1e-5)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = self.norm1(
            tokens + _few_look(self.output_self_attn, tokens + token_pe, tokens + token_pe, tokens)
        )
        tokens = self.norm2(
            tokens
            + _few_look(self.cross_attn_token_to_image, tokens + token_pe, image + image_pe, image)
        )
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(
            image
            + _many_look(
                self.cross_attn_image_to_token, image + image_pe, tokens + token_pe, tokens
            )
        )
        return tokens, image


# Attention between few tokens (F) and many patches or pixels (N), of width D, heads H of width d.
# It is that of nn.MultiheadAttention, multiplied out in another order: what would project the many
# is applied to the few instead.


def _few_look(
    attention: nn.MultiheadAttention, query_BFD: Tensor, key_BND: Tensor, value_BND: Tensor
) -> Tensor:
    """Few queries over many keys. A key's bias adds the same to all scores of a query, so softmax
    does not see it.
    """
    (query, query_bias), (key, _), (value, value_bias) = _per_head(attention)
    query_BFHd = torch.einsum("bfc,hdc->bfhd", query_BFD, query) + query_bias
    query_BFHD = torch.einsum("bfhd,hdc->bfhc", query_BFHd, key)
    one_head = (query_BFHD.flatten(1, 2), key_BND, value_BND)
    seen = F.scaled_dot_product_attention(
        *(x.expand(len(key_BND), -1, -1)[:, None] for x in one_head), scale=key.shape[1] ** -0.5
    )
    seen_BFHD = seen[:, 0].unflatten(1, query_BFHD.shape[1:3])
    return attention.out_proj(
        (torch.einsum("bfhc,hdc->bfhd", seen_BFHD, value) + value_bias).flatten(2)
    )


def _many_look(
    attention: nn.MultiheadAttention, query_BND: Tensor, key_BFD: Tensor, value_BFD: Tensor
) -> Tensor:
    """Many queries over few keys."""
    (query, query_bias), (key, key_bias), (value, value_bias) = _per_head(attention)
    key_BFHd = (torch.einsum("bfc,hdc->bfhd", key_BFD, key) + key_bias) * key.shape[1] ** -0.5
    value_BFHd = torch.einsum("bfc,hdc->bfhd", value_BFD, value) + value_bias
    key_BFHD = torch.einsum("bfhd,hdc->bfhc", key_BFHd, query)
    value_BFHD = torch.einsum(
        "bfhd,chd->bfhc", value_BFHd, attention.out_proj.weight.unflatten(1, query.shape[:2])
    )
    bias_B1K = (key_BFHd * query_bias).sum(-1).flatten(1)[:, None]
    scores_BNK = torch.baddbmm(bias_B1K, query_BND, key_BFHD.flatten(1, 2).transpose(1, 2))
    weights_BNFH = scores_BNK.unflatten(2, key_BFHD.shape[1:3]).softmax(dim=2)
    return weights_BNFH.flatten(2) @ value_BFHD.flatten(1, 2) + attention.out_proj.bias


def _per_head(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor]]:
    """Weight (H, d, D) and bias (H, d) of the projections of queries, keys and values."""
    heads = (attention.num_heads, -1)
    parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    return [(weight.unflatten(0, heads), bias.unflatten(0, heads)) for weight, bias in parts]


class RefinerHead(nn.Module):
    """One pass gives candidates; `iterate` feeds the best back, as often as asked."""

    def __init__(self, config: RefinerConfig, grid: int) -> None:
        super().__init__()
        self.config = config
        dim, fine = config.embed_dim, config.embed_dim // 8
        self.image_proj = nn.Conv2d(config.enc_dim, dim, 1)
        self.hq_fusion = FeatureFusion(config.enc_dim, dim)
        self.mask_encoder = MaskEncoder(dim)
        self.image_pe = nn.Parameter(torch.zeros(1, dim, grid, grid))
        self.mask_tokens = nn.Parameter(torch.zeros(config.num_masks, dim))
        self.iou_token = nn.Parameter(torch.zeros(1, dim))
        self.output_pe = nn.Parameter(torch.zeros(config.num_masks + 1, dim))
        self.transformer_blocks = nn.ModuleList(
            TwoWayBlock(dim, config.num_heads, config.mlp_ratio) for _ in range(config.num_layers)
        )
        self.final_token_to_image = nn.MultiheadAttention(dim, config.num_heads, batch_first=True)
        self.final_norm = nn.LayerNorm(dim, eps=1e-5)
        self.upsample = nn.Sequential(*_upsampling(dim))
        self.final_q_proj = nn.Linear(dim, fine)
        self.final_attn_up = nn.MultiheadAttention(fine, 4, batch_first=True)
        self.final_norm_up = nn.LayerNorm(fine, eps=1e-5)
        self.mask_mlps = nn.ModuleList(_mlp(fine, fine) for _ in range(config.num_masks))
        self.iou_head = _mlp(dim, config.num_masks)

    def fuse(self, final_BPD: Tensor, early_BPD: Tensor) -> Tensor:
        """Encoder features to the head's image map (B, C, G, G): the part that does not depend on
        the mask.
        """
        grid = self.image_pe.shape[-2:]
        return self.hq_fusion(
            early_BPD, self.image_proj(final_BPD.transpose(1, 2).unflatten(2, grid))
        )

    def forward(self, fused_BCGG: Tensor, mask_BSS: Tensor) -> Candidates:
        """Candidates for a mask in 0..1, (B, size, size), over fused features."""
        tokens_BMC, pixels_BcUU, iou_BM = self._look(fused_BCGG, mask_BSS)
        tokens_BMc = self._look_closer(tokens_BMC, pixels_BcUU)
        weights_BMc = torch.stack(
            [mlp(tokens_BMc[:, index]) for index, mlp in enumerate(self.mask_mlps)], dim=1
        )
        return Candidates(
            logits=_mask_logits(weights_BMc, pixels_BcUU, mask_BSS.shape[-2:]), iou=iou_BM
        )

    def best(self, fused_BCGG: Tensor, mask_BSS: Tensor) -> tuple[Tensor, Tensor]:
        """Of `forward`'s candidates the one of highest predicted IoU: logits (B, size, size) and
        that IoU (B,).

        Predicting the IoUs takes no masks, and a mask takes no others: only the best is made.
        """
        tokens_BMC, pixels_BcUU, iou_BM = self._look(fused_BCGG, mask_BSS)
        iou_B, best_B = iou_BM.max(dim=1)
        rows = torch.arange(len(best_B), device=best_B.device)
        token_Bc = self._look_closer(tokens_BMC[rows, best_B][:, None], pixels_BcUU)[:, 0]
        weights_B1c = torch.stack([mlp(token_Bc) for mlp in self.mask_mlps], dim=1)[rows, best_B][
            :, None
        ]
        return _mask_logits(weights_B1c, pixels_BcUU, mask_BSS.shape[-2:])[:, 0], iou_B

    def _look(self, fused_BCGG: Tensor, mask_BSS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mask tokens (B, M, C), the image as pixels (B, c, U, U) with U = 8 G, and predicted IoUs
        (B, M).
        """
        grid = fused_BCGG.shape[-2:]
        hint = F.interpolate(
            self.mask_encoder(mask_BSS[:, None]), size=grid, mode="bilinear", align_corners=False
        )
        image = (fused_BCGG + hint).flatten(2).transpose(1, 2)
        image_pe = self.image_pe.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.mask_tokens, self.iou_token])[
            None
        ]  # of all rows at once, until the image tells them apart
        for block in self.transformer_blocks:
            tokens, image = block(tokens, image, self.output_pe, image_pe)
        tokens = self.final_norm(
            tokens
            + _few_look(self.final_token_to_image, tokens + self.output_pe, image + image_pe, image)
        )
        return (
            tokens[:, :-1],
            self.upsample(image.transpose(1, 2).unflatten(2, grid)),
            self.iou_head(tokens[:, -1]),
        )

    def _look_closer(self, tokens_BMC: Tensor, pixels_BcUU: Tensor) -> Tensor:
        tokens_BMc = self.final_q_proj(tokens_BMC)
        pixels_BNc = pixels_BcUU.flatten(2).transpose(1, 2)
        return tokens_BMc + _few_look(
            self.final_attn_up, self.final_norm_up(tokens_BMc), pixels_BNc, pixels_BNc
        )

    def iterate(
        self, fused_BCGG: Tensor, coarse_BSS: Tensor, iterations: int, settle: float = 0.0
    ) -> Refinement:
        """Feed the best candidate back `iterations` (>= 1) times, starting from the coarse mask.

        A row ends early, and leaves the batch, once less than `settle` (0..1; 0 is never) of its
        mask's pixels changed sides in an iteration.
        """
        rows, probs = torch.arange(len(coarse_BSS)), coarse_BSS
        ended: list[tuple[Tensor, Refinement]] = []
        for count in range(1, iterations + 1):
            before, (logits, iou) = probs, self.best(fused_BCGG, probs)
            probs = logits.sigmoid()
            found = _refinement(before, probs, iou, count)
            if settle > 0 and count < iterations:
                going = (
                    _moved(before, probs) >= settle
                ).cpu()  # the host waits here, and nowhere else
                ended.append((rows[~going], _pick(found, ~going)))
                rows, probs, fused_BCGG, found = (
                    rows[going],
                    probs[going],
                    fused_BCGG[going],
                    _pick(found, going),
                )
                if not len(rows):
                    break
        return _in_order([*ended, (rows, found)]) if ended else found


def _refinement(before_BSS: Tensor, probs_BSS: Tensor, iou_B: Tensor, count: int) -> Refinement:
    stability_B = _mask_iou(before_BSS > 0.5, probs_BSS > 0.5)
    return Refinement(
        probs=probs_BSS,
        iou=iou_B,
        stability=stability_B,
        iterations=torch.full_like(iou_B, count, dtype=torch.long),
    )


def _pick(found: Refinement, rows: Tensor) -> Refinement:
    return Refinement(*(field[rows] for field in found))


def _in_order(parts: list[tuple[Tensor, Refinement]]) -> Refinement:
    """One refinement of parts and the numbers of their rows."""
    rows, found = zip(*parts, strict=True)
    return _pick(Refinement(*map(torch.cat, zip(*found, strict=True))), torch.cat(rows).argsort())


def _moved(before_BSS: Tensor, probs_BSS: Tensor) -> Tensor:
    """Share of the pixels that changed sides, (B,)."""
    return ((before_BSS > 0.5) != (probs_BSS > 0.5)).flatten(1).float().mean(1)


def _mask_logits(weights_BMc: Tensor, pixels_BcUU: Tensor, size: tuple[int, int]) -> Tensor:
    logits_BMUU = torch.einsum("bmc,bchw->bmhw", weights_BMc, pixels_BcUU)
    return F.interpolate(logits_BMUU, size=size, mode="bilinear", align_corners=False)


def _upsampling(dim: int) -> list[nn.Module]:
    """Three times: 2 x 2 transposed convolution to half the width, then 3 x 3 convolution, each
    with norm and GELU.
    """
    layers: list[nn.Module] = []
    for step in range(3):
        wide, narrow = dim >> step, dim >> (step + 1)
        layers += [nn.ConvTranspose2d(wide, narrow, 2, stride=2), ChannelNorm(narrow), nn.GELU()]
        layers += [nn.Conv2d(narrow, narrow, 3, padding=1), ChannelNorm(narrow), nn.GELU()]
    return layers


def _mask_iou(a_BSS: Tensor, b_BSS: Tensor) -> Tensor:
    union = (a_BSS | b_BSS).flatten(1).sum(1)
    return torch.where(union > 0, (a_BSS & b_BSS).flatten(1).sum(1) / union.clamp(min=1), 1.0)
