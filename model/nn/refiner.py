"""The refiner head: image features and a coarse mask in, candidate masks and predicted IoUs out.

Formulas in docs/model.md, Refiner.

Shapes: B crops, P patches of a crop (G x G), D encoder width, C head width, c = C / 8 width of the
upsampled pixels, U = 8 G their grid, S side of a mask, M candidate masks, M + 1 tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.nn.config import RefinerConfig
from wordmask.model.nn.layers import NORM_EPS, attend_few_keys, attend_few_queries

GROUPS = 32  # of a GroupNorm
UPSAMPLING_STEPS = 3  # each doubles the side and halves the width
UPSAMPLED_HEADS = 4  # heads of the attention over upsampled pixels


class Candidates(NamedTuple):
    """Candidate masks: their `logits` (B, M, S, S) and predicted IoUs `iou` (B, M).

    The IoUs are raw: not confined to 0..1.
    """

    logits: Tensor
    iou: Tensor


class Refinement(NamedTuple):
    """Result of the iterations.

    `probs` (B, S, S) in 0..1; `iou` (B,) predicted for it, raw; `stability` (B,) is the IoU of the
    last two iterations' thresholded masks (1 where both are empty); `iterations` (B,) says how
    many the row took.
    """

    probs: Tensor
    iou: Tensor
    stability: Tensor
    iterations: Tensor

    def select(self, rows: Tensor) -> Refinement:
        """Return the given rows only."""
        return Refinement(*(field[rows] for field in self))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return self.norm(x_BHWC).permute(0, 3, 1, 2)


class FeatureFusion(nn.Module):
    """Early and projected final features to one map (the paper's high-quality fusion)."""

    def __init__(self, enc_dim: int, dim: int) -> None:
        super().__init__()
        self.early_proj = nn.Sequential(
            nn.Linear(enc_dim, dim),
            nn.LayerNorm(dim, eps=NORM_EPS),
            nn.GELU(),
        )
        self.fusion = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 1),
            nn.GroupNorm(GROUPS, dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GroupNorm(GROUPS, dim),
            nn.GELU(),
        )

    def forward(self, early_BPD: Tensor, final_BCGG: Tensor) -> Tensor:
        early_BCP = self.early_proj(early_BPD).transpose(1, 2)
        early_BCGG = early_BCP.unflatten(2, final_BCGG.shape[-2:])
        return self.fusion(torch.cat([early_BCGG, final_BCGG], dim=1))


class MaskEncoder(nn.Module):
    """A mask (B, 1, S, S) to a map of the head's width at a sixteenth of the side."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = _halving_conv(1, dim // 16, groups=1)
        self.conv2 = _halving_conv(dim // 16, dim // 8, groups=8)
        self.conv3 = _halving_conv(dim // 8, dim // 4, groups=16)
        self.conv4 = _halving_conv(dim // 4, dim, groups=GROUPS)

    def forward(self, mask_B1SS: Tensor) -> Tensor:
        return self.conv4(self.conv3(self.conv2(self.conv1(mask_B1SS))))


def _halving_conv(narrow: int, wide: int, *, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 3, stride=2, padding=1),
        # Narrow heads have fewer channels than the published number of groups.
        nn.GroupNorm(min(groups, wide), wide),
        nn.GELU(),
    )


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image; the image attends to the tokens.

    Norms come after the sums. Queries and keys get their position embedding added, values do not.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.output_self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn_token_to_image = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim),
            nn.GELU(),
            nn.Linear(mlp_ratio * dim, dim),
        )
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn_image_to_token = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm4 = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return new tokens (B, M + 1, C) and a new image (B, P, C)."""
        query = tokens + token_pe
        attended = attend_few_queries(self.output_self_attn, query, query, tokens)
        tokens = self.norm1(tokens + attended)

        query = tokens + token_pe
        key = image + image_pe
        attended = attend_few_queries(self.cross_attn_token_to_image, query, key, image)
        tokens = self.norm2(tokens + attended)

        tokens = self.norm3(tokens + self.mlp(tokens))

        query = image + image_pe
        key = tokens + token_pe
        attended = attend_few_keys(self.cross_attn_image_to_token, query, key, tokens)
        image = self.norm4(image + attended)
        return tokens, image


class RefinerHead(nn.Module):
    """One pass gives candidates; `iterate` feeds the best one back again and again."""

    def __init__(self, config: RefinerConfig, grid: int) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        fine = dim >> UPSAMPLING_STEPS
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
        self.final_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.upsample = _upsampling(dim)
        self.final_q_proj = nn.Linear(dim, fine)
        self.final_attn_up = nn.MultiheadAttention(fine, UPSAMPLED_HEADS, batch_first=True)
        self.final_norm_up = nn.LayerNorm(fine, eps=NORM_EPS)
        self.mask_mlps = nn.ModuleList(_mlp(fine, fine) for _ in range(config.num_masks))
        self.iou_head = _mlp(dim, config.num_masks)

    def fuse(self, final_BPD: Tensor, early_BPD: Tensor) -> Tensor:
        """Return the head's image map (B, C, G, G) from the encoder's features of crops.

        It is the part that does not depend on the mask: once a crop, whatever the iterations.
        """
        grid = self.image_pe.shape[-2:]
        final_BDGG = final_BPD.transpose(1, 2).unflatten(2, grid)
        return self.hq_fusion(early_BPD, self.image_proj(final_BDGG))

    def forward(self, fused_BCGG: Tensor, mask_BSS: Tensor) -> Candidates:
        """Return the candidates for a mask in 0..1 (B, S, S), over fused features."""
        tokens_BMC, pixels_BcUU, iou_BM = self._run_transformer(fused_BCGG, mask_BSS)
        tokens_BMc = self._attend_upsampled(tokens_BMC, pixels_BcUU)
        weights = [mlp(tokens_BMc[:, index]) for index, mlp in enumerate(self.mask_mlps)]
        weights_BMc = torch.stack(weights, dim=1)
        logits_BMSS = _mask_logits(weights_BMc, pixels_BcUU, size=mask_BSS.shape[-1])
        return Candidates(logits=logits_BMSS, iou=iou_BM)

    def best_candidate(self, fused_BCGG: Tensor, mask_BSS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidate of highest predicted IoU: its logits (B, S, S) and that IoU (B,).

        It is one of `forward`'s. Predicting the IoUs takes no masks, and a mask takes no others:
        only the best is made.
        """
        tokens_BMC, pixels_BcUU, iou_BM = self._run_transformer(fused_BCGG, mask_BSS)
        iou_B, best_B = iou_BM.max(dim=1)
        rows = torch.arange(len(best_B), device=best_B.device)
        token_B1C = tokens_BMC[rows, best_B][:, None]
        token_Bc = self._attend_upsampled(token_B1C, pixels_BcUU)[:, 0]
        weights_BMc = torch.stack([mlp(token_Bc) for mlp in self.mask_mlps], dim=1)
        weights_B1c = weights_BMc[rows, best_B][:, None]
        logits_B1SS = _mask_logits(weights_B1c, pixels_BcUU, size=mask_BSS.shape[-1])
        return logits_B1SS[:, 0], iou_B

    def _run_transformer(
        self, fused_BCGG: Tensor, mask_BSS: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the two-way blocks.

        Returns:
            Mask tokens (B, M, C), the image as pixels (B, c, U, U), and predicted IoUs (B, M).
        """
        grid = fused_BCGG.shape[-2:]
        mask_BCgg = self.mask_encoder(mask_BSS[:, None])
        mask_BCGG = F.interpolate(mask_BCgg, size=grid, mode="bilinear", align_corners=False)
        image = (fused_BCGG + mask_BCGG).flatten(2).transpose(1, 2)
        image_pe = self.image_pe.flatten(2).transpose(1, 2)
        # One row of tokens stands for all rows, until they have attended to the images.
        tokens = torch.cat([self.mask_tokens, self.iou_token])[None]
        for block in self.transformer_blocks:
            tokens, image = block(tokens, image, self.output_pe, image_pe)

        query = tokens + self.output_pe
        key = image + image_pe
        attended = attend_few_queries(self.final_token_to_image, query, key, image)
        tokens = self.final_norm(tokens + attended)
        pixels_BcUU = self.upsample(image.transpose(1, 2).unflatten(2, grid))
        iou_BM = self.iou_head(tokens[:, -1])
        return tokens[:, :-1], pixels_BcUU, iou_BM

    def _attend_upsampled(self, tokens_BMC: Tensor, pixels_BcUU: Tensor) -> Tensor:
        """Let mask tokens attend to the upsampled pixels, (B, M, c)."""
        tokens_BMc = self.final_q_proj(tokens_BMC)
        pixels_BNc = pixels_BcUU.flatten(2).transpose(1, 2)
        query_BMc = self.final_norm_up(tokens_BMc)
        attended = attend_few_queries(self.final_attn_up, query_BMc, pixels_BNc, pixels_BNc)
        return tokens_BMc + attended

    def iterate(
        self, fused_BCGG: Tensor, coarse_BSS: Tensor, iterations: int, settle: float = 0.0
    ) -> Refinement:
        """Feed the best candidate back, starting from the coarse mask.

        Args:
            fused_BCGG: features from `fuse`.
            coarse_BSS: the coarse masks, 0 or 1.
            iterations: how often, at least 1.
            settle: a row ends early, and leaves the batch, once less than this share of its
                mask's pixels changed sides in an iteration (0..1; 0 is never).
        """
        rows = torch.arange(len(coarse_BSS))
        probs = coarse_BSS
        ended: list[tuple[Tensor, Refinement]] = []
        for count in range(1, iterations + 1):
            before = probs
            logits, iou = self.best_candidate(fused_BCGG, before)
            probs = logits.sigmoid()
            result = _refinement(before, probs, iou, count)
            if settle <= 0 or count == iterations:
                continue
            going = (_changed_share(before, probs) >= settle).cpu()  # the host waits here only
            ended.append((rows[~going], result.select(~going)))
            rows = rows[going]
            probs = probs[going]
            fused_BCGG = fused_BCGG[going]
            result = result.select(going)
            if not len(rows):
                break
        if not ended:
            return result
        return _in_order([*ended, (rows, result)])


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, dim),
        nn.GELU(),
        nn.Linear(dim, dim),
        nn.GELU(),
        nn.Linear(dim, out),
    )


def _upsampling(dim: int) -> nn.Sequential:
    """Return the upsampling from the grid to the pixels, (B, C, G, G) to (B, c, U, U).

    Each step is a 2 x 2 transposed convolution to half the width and a 3 x 3 convolution, both with
    norm and GELU.
    """
    layers: list[nn.Module] = []
    for step in range(UPSAMPLING_STEPS):
        wide = dim >> step
        narrow = wide // 2
        layers += [
            nn.ConvTranspose2d(wide, narrow, 2, stride=2),
            ChannelNorm(narrow),
            nn.GELU(),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            ChannelNorm(narrow),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)


def _mask_logits(weights_BMc: Tensor, pixels_BcUU: Tensor, *, size: int) -> Tensor:
    """Return the logits of masks, (B, M, size, size): products of weights and pixels, resized."""
    logits_BMUU = torch.einsum("bmc,bchw->bmhw", weights_BMc, pixels_BcUU)
    return F.interpolate(logits_BMUU, size=size, mode="bilinear", align_corners=False)


def _refinement(before_BSS: Tensor, probs_BSS: Tensor, iou_B: Tensor, count: int) -> Refinement:
    return Refinement(
        probs=probs_BSS,
        iou=iou_B,
        stability=_mask_iou(before_BSS > 0.5, probs_BSS > 0.5),
        iterations=torch.full_like(iou_B, count, dtype=torch.long),
    )


def _in_order(parts: list[tuple[Tensor, Refinement]]) -> Refinement:
    """Join parts to one refinement; each part comes with the numbers of its rows."""
    numbers = torch.cat([rows for rows, _ in parts])
    results = [result for _, result in parts]
    joined = Refinement(*(torch.cat(fields) for fields in zip(*results, strict=True)))
    return joined.select(numbers.argsort())


def _changed_share(before_BSS: Tensor, probs_BSS: Tensor) -> Tensor:
    """Return the share of the pixels that changed sides, (B,)."""
    changed_BSS = (before_BSS > 0.5) != (probs_BSS > 0.5)
    return changed_BSS.flatten(1).float().mean(1)


def _mask_iou(a_BSS: Tensor, b_BSS: Tensor) -> Tensor:
    """Return the IoU of binary masks, (B,); 1 where both are empty."""
    union_B = (a_BSS | b_BSS).flatten(1).sum(1)
    intersection_B = (a_BSS & b_BSS).flatten(1).sum(1)
    return torch.where(union_B > 0, intersection_B / union_B.clamp(min=1), 1.0)
