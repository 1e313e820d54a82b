"""The published implementation's algorithm, written plainly.

It takes one query at a time; nothing is shared and nothing batched.

Same weights as the model it is given, same results where the decoding stays well formed. Encode,
prefill, decode and refine per query. As in vikhyat/moondream (moondream/torch: moondream.py,
text.py) the cache has a slot for every position of the context and attention runs over all of it,
masked; image and prompt are read in two passes; every step computes the vocabulary's logits. A
token's experts are gathered, a prompt's looped over. What surrounds the model (filling, cleaning,
tracing) is ours: `masks` measures the published way of that.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.prompt import build_prompt, embed_prompts
from wordmask.model.masks import rle
from wordmask.model.masks.boxes import clip_box
from wordmask.model.masks.cleanup import clean
from wordmask.model.masks.crops import cut_crop, paste_mask
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.masks.trace import trace
from wordmask.model.nn.image_crops import crop_image, normalise
from wordmask.model.nn.moe import MixtureOfExperts
from wordmask.model.nn.refiner import TwoWayBlock
from wordmask.model.nn.rope import rotary_table, rotate
from wordmask.model.nn.text import TextBlock
from wordmask.model.nn.vision import VisionBlock, patchify, stitch
from wordmask.model.segmenter import Segmenter


class Published:
    """One model, one query at a time."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.model, self.head, self.config = (
            segmenter.model.model,
            segmenter.model.head,
            segmenter.config,
        )
        self.tokenizer = segmenter.tokenizer
        self.iterations = segmenter.stages.refiner_iterations

    @torch.inference_mode()
    def segment(self, image: np.ndarray, query: str) -> tuple[str, str]:
        """The coarse path, and the counts of the mask's RLE."""
        box, ids = self.draw(self.encode_image(image), query)
        box = clip_box(box)
        path = parse_path(self.tokenizer.path_tokens(ids)).path
        height, width = image.shape[:2]
        mask = rasterize(path, box, height, width) if path else np.zeros((height, width), np.uint8)
        crop = cut_crop(image, mask, box, self.config.vision.crop_size) if mask.any() else None
        if crop is not None:
            refined = paste_mask(self.refine(crop.image, crop.mask), crop.xyxy, height, width)
            mask = refined if refined.any() else mask
        mask = clean(mask)
        trace(mask)
        cv2.boundingRect(mask)
        return path, rle.encode(mask)["counts"]

    def encode_image(self, image: np.ndarray) -> Tensor:
        """Image tokens (P, D).

        The published crops repeat the whole image as the only tile where one tile is enough.
        """
        crops = crop_image(image, self.config.vision)
        pixels = (
            crops.crops_NHWC
            if len(crops.crops_NHWC) > 1
            else np.repeat(crops.crops_NHWC, 2, axis=0)
        )
        final, _ = self.encode_crops(pixels)
        local = stitch(final[1:], crops.tiling, self.config.vision.overlap_margin)
        pooled = F.adaptive_avg_pool2d(local.permute(2, 0, 1), self.config.vision.grid).flatten(1).T
        mlp = self.model.vision.proj_mlp
        return mlp.fc2(F.gelu(mlp.fc1(torch.cat([final[0], pooled], dim=-1)), approximate="tanh"))

    def encode_crops(self, crops_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        vision, config = self.model.vision, self.config.vision
        x = normalise(crops_NHWC, torch.device("cpu"), torch.float32)
        x = vision.patch_emb(patchify(x, config.enc_patch_size)) + vision.pos_emb
        early = x
        for index, block in enumerate(vision.blocks):
            x = _vision_block(block, x)
            early = x if index == config.early_layer else early
        return vision.post_ln(x), early

    def draw(self, image_PD: Tensor, query: str) -> tuple[tuple[float, ...], list[int]]:
        """Box and path ids of one query."""
        text, region, tokens = self.model.text, self.model.region, self.config.tokens
        prompt = build_prompt(query, (), self.tokenizer, tokens)
        bos = text.embed(torch.tensor([tokens.bos_id]))
        static = text.new_cache(1, text.config.max_context)
        self.cache = list(zip(static.k, static.v, strict=True))
        self.forward(torch.cat([bos, image_PD])[None], 0)
        words = embed_prompts([prompt], text, region)
        hidden, at, box = (
            self.forward(words, len(image_PD) + 1)[:, -1],
            len(image_PD) + 1 + words.shape[1],
            [],
        )
        text.logits(hidden)
        for _ in range(2):
            value = region.coord_logits(hidden).argmax(-1).float() / (
                region.config.coord_out_dim - 1
            )
            box.append(value.item())
            hidden, at = self.step(region.encode_coord(value[:, None])[:, None], at)
        bins = region.size_logits(hidden).argmax(-1).float() / (region.config.size_out_dim // 2 - 1)
        size = torch.exp2(bins * 10 - 10)
        box += size[0].tolist()
        hidden, at = self.step(region.encode_size(size)[:, None], at)
        ids: list[int] = []
        while len(ids) < tokens.max_new_tokens:
            token = int(self.logits.argmax())
            if token == tokens.eos_id:
                break
            ids.append(token)
            hidden, at = self.step(text.embed(torch.tensor([[token]])), at)
        return tuple(box), ids

    def step(self, x: Tensor, at: int) -> tuple[Tensor, int]:
        """One more token at position `at`: its stream, and the next position."""
        hidden = self.forward(x, at)[:, -1]
        self.logits = self.model.text.logits(hidden)
        return hidden, at + 1

    def forward(self, x: Tensor, at: int) -> Tensor:
        """New positions from `at` on, through all blocks."""
        config = self.config.text
        positions = torch.arange(at, at + x.shape[1])[None]
        table = rotary_table(positions, config.rotary_dim, config.rope_theta)
        slots = torch.arange(config.max_context)
        mask = (slots <= positions[0][:, None]) | (
            (positions[0][:, None] < config.prefix_attn) & (slots < config.prefix_attn)
        )
        for layer, block in enumerate(self.model.text.blocks):
            x = self.text_block(block, layer, x, positions, table, mask)
        return x

    def text_block(
        self,
        block: TextBlock,
        layer: int,
        x: Tensor,
        positions: Tensor,
        table: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> Tensor:
        normed, tau = block.ln(x), block.attn.tau
        qkv = block.attn.qkv(normed)
        features = F.gelu(qkv)
        place = 1 + torch.sigmoid(tau.alpha * torch.log(positions.float() + 1)[..., None]) - 0.5
        scales = [
            (torch.tanh(F.linear(features, weight)) + place).transpose(1, 2)[..., None]
            for weight in (tau.wq, tau.wv)
        ]
        q, k, v = qkv.unflatten(-1, (3, block.attn.n_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = rotate(q * scales[0], table), rotate(k, table), v * scales[1]
        for block_cache, new in zip(self.cache[layer], (k, v), strict=True):
            block_cache[:, :, positions[0]] = new
        out = (
            F.scaled_dot_product_attention(q, *self.cache[layer], attn_mask=mask)
            .transpose(1, 2)
            .flatten(2)
        )
        return x + block.attn.proj(out) + _feed_forward(block.mlp, normed)

    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Probabilities (size, size) after all iterations."""
        final, early = self.encode_crops(image[None])
        fused, probs = self.head.fuse(final, early), torch.from_numpy(mask)[None]
        for _ in range(self.iterations):
            logits, iou = self.candidates(fused, probs)
            probs = logits[:, int(iou.argmax())].sigmoid()
        return probs[0].numpy()

    def candidates(self, fused: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        head, grid = self.head, fused.shape[-2:]
        hint = F.interpolate(
            head.mask_encoder(mask[:, None]), size=grid, mode="bilinear", align_corners=False
        )
        image = (fused + hint).flatten(2).transpose(1, 2)
        place = head.image_pe.flatten(2).transpose(1, 2)
        tokens = torch.cat([head.mask_tokens, head.iou_token])[None]
        for block in head.transformer_blocks:
            tokens, image = _two_way(block, tokens, image, head.output_pe, place)
        attended = head.final_token_to_image(
            tokens + head.output_pe, image + place, image, need_weights=False
        )[0]
        tokens = head.final_norm(tokens + attended)
        pixels = head.upsample(image.transpose(1, 2).unflatten(2, grid))
        flat = pixels.flatten(2).transpose(1, 2)
        queries = head.final_q_proj(tokens[:, :-1])
        queries = (
            queries
            + head.final_attn_up(head.final_norm_up(queries), flat, flat, need_weights=False)[0]
        )
        weights = torch.stack(
            [mlp(queries[:, index]) for index, mlp in enumerate(head.mask_mlps)], dim=1
        )
        logits = torch.einsum("bmc,bchw->bmhw", weights, pixels)
        return F.interpolate(
            logits, size=mask.shape[-2:], mode="bilinear", align_corners=False
        ), head.iou_head(tokens[:, -1])


def _vision_block(block: VisionBlock, x: Tensor) -> Tensor:
    q, k, v = (
        block.attn.qkv(block.ln1(x))
        .unflatten(-1, (3, block.attn.n_heads, -1))
        .permute(2, 0, 3, 1, 4)
    )
    x = x + block.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.ln2(x)), approximate="tanh"))


def _feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(mlp, MixtureOfExperts):
        return mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))
    flat = x[0]
    logits, experts = mlp.router(flat).topk(mlp.experts_per_token, dim=-1)
    weights = logits.softmax(-1)
    if len(flat) == 1:
        h, g = torch.einsum("koc,c->ko", mlp.fc1.weight[experts[0]], flat[0]).chunk(2, dim=-1)
        out = torch.einsum("kco,ko->kc", mlp.fc2.weight[experts[0]], F.gelu(h) * (g + 1))
        return (out * weights[0][:, None]).sum(0)[None, None]
    total = torch.zeros_like(flat)
    for expert in range(len(mlp.fc1.weight)):
        token, place = (experts == expert).nonzero(as_tuple=True)
        if len(token):
            h, g = F.linear(flat[token], mlp.fc1.weight[expert]).chunk(2, dim=-1)
            total.index_add_(
                0,
                token,
                F.linear(F.gelu(h) * (g + 1), mlp.fc2.weight[expert])
                * weights[token, place][:, None],
            )
    return total[None]


def _two_way(
    block: TwoWayBlock, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
) -> tuple[Tensor, Tensor]:
    def attend(
        attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        return attention(query, key, value, need_weights=False)[0]

    tokens = block.norm1(
        tokens + attend(block.output_self_attn, tokens + token_pe, tokens + token_pe, tokens)
    )
    tokens = block.norm2(
        tokens + attend(block.cross_attn_token_to_image, tokens + token_pe, image + image_pe, image)
    )
    tokens = block.norm3(tokens + block.mlp(tokens))
    image = block.norm4(
        image + attend(block.cross_attn_image_to_token, image + image_pe, tokens + token_pe, tokens)
    )
    return tokens, image
