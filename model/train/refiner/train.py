"""Stage 3 of the paper: the refiner learns from coarse masks and their ground truth.

How to run it, and where it departs from the paper: docs/training.md.

Shapes: B rows, S side of a crop, M masks that the head proposes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.image_crops import normalise
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.refiner import Candidates
from wordmask.model.train.loop import (
    OnProgress,
    Stage,
    ignore_progress,
    resume,
    run_stage,
    update_weights,
    warmup_cosine,
)
from wordmask.model.train.processes import process_rank
from wordmask.model.train.refiner.config import RefinerSettings
from wordmask.model.train.refiner.data import CoarseMasks, perturbed_stream, rollout_pool
from wordmask.model.train.small_model import TrainedModel, trained_model

LAST_FLOOR = 0.02  # of the learning rate, what is left at the end
PIXEL_DIMS = (-2, -1)


@dataclass(frozen=True, kw_only=True)
class RefinerBatch:
    """Rows of a step, and how many iterations the head makes on them before the one it learns."""

    masks: CoarseMasks
    warm_iterations: int


class RefinerStage(Stage[RefinerBatch]):
    """A run of the refiner stage; a checkpoint holds the head."""

    metrics = ("mask", "iou_error", "chosen_iou", "coarse_iou")

    def __init__(self, settings: RefinerSettings, decoder: TrainedModel) -> None:
        self.settings: RefinerSettings = settings
        self.model: MoondreamSegmentation = decoder.model
        self.tokenizer: PathTokenizer = decoder.tokenizer
        self.model.model.requires_grad_(False)
        self.model.head.requires_grad_()
        self.optimizer = torch.optim.AdamW(
            self.model.head.parameters(), weight_decay=settings.weight_decay
        )

    def phases(self) -> list[tuple[str, int]]:
        return [("refiner", self.settings.steps)]

    def batches(self, steps: range) -> Iterable[RefinerBatch]:
        settings, config = self.settings, self.model.config
        pool = rollout_pool(self.model, self.tokenizer, settings)
        stream = perturbed_stream(settings, steps, config.vision.crop_size)
        for step, perturbed in zip(steps, stream, strict=True):
            rng = np.random.default_rng((settings.seed, step, 5, process_rank()))
            rows = rng.choice(settings.pool_rows, settings.drawn, replace=False)
            sampled = pool.select(torch.from_numpy(rows))
            masks = perturbed.joined(sampled)
            warm_iterations = rng.integers(0, config.refiner.iterations)
            yield RefinerBatch(masks=masks, warm_iterations=int(warm_iterations))

    def learning_rate(self, step: int) -> float:
        settings = self.settings
        return warmup_cosine(
            step,
            peak=settings.learning_rate,
            steps=settings.steps,
            warmup=settings.warmup,
            floor=LAST_FLOOR,
        )

    def train_step(self, batch: RefinerBatch) -> dict[str, float]:
        """Iterate without gradient, so that the head sees its own outputs, then learn one step."""
        head = self.model.head
        device = self.model.device
        coarse = batch.masks.coarse_BSS.to(device)
        truth = batch.masks.truth_BSS.to(device)
        fused = self._fused_features(batch.masks.image_BSS3)
        mask = coarse
        if batch.warm_iterations:
            with torch.no_grad():
                mask = head.iterate(fused, coarse, batch.warm_iterations).probs
        candidates = head(fused, mask)
        loss, metrics = refiner_loss(candidates, truth, self.settings.others)
        update_weights(self.optimizer, loss)
        coarse_ious = _mask_iou(coarse > 0.5, truth > 0.5)
        metrics["coarse_iou"] = coarse_ious.mean().item()
        return metrics

    def _fused_features(self, image_BSS3: Tensor) -> Tensor:
        """Return the head's features of images; the encoder is frozen."""
        with torch.no_grad():
            pixels = normalise(image_BSS3.numpy(), self.model.device, torch.float32)
            features = self.model.model.vision(pixels)
        return self.model.head.fuse(features.final, features.early)

    def state_dict(self) -> dict[str, Any]:
        return {
            "head": self.model.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.head.load_state_dict(saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])


def refiner_loss(
    candidates: Candidates, truth_BSS: Tensor, others: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of one iteration, and its metrics.

    Masks: binary cross-entropy and dice, of which the best mask counts fully and the others by
    `others`. IoU head: squared error on all masks.
    """
    logits = candidates.logits.float()
    truth_BMSS = truth_BSS[:, None].expand_as(logits)
    mask_loss_BM = _mask_loss(logits, truth_BMSS)
    best_B = mask_loss_BM.min(dim=1).values
    iou_BM = _mask_iou(logits > 0, truth_BMSS > 0.5)
    iou_error = F.mse_loss(candidates.iou.float(), iou_BM)
    chosen_B1 = candidates.iou.argmax(dim=1, keepdim=True)
    chosen_iou_B1 = iou_BM.gather(1, chosen_B1)
    metrics = {
        "mask": best_B.mean().item(),
        "iou_error": iou_error.item(),
        "chosen_iou": chosen_iou_B1.mean().item(),
    }
    mean_B = mask_loss_BM.mean(dim=1)
    mask_loss = (1 - others) * best_B + others * mean_B
    loss = mask_loss.mean() + iou_error
    return loss, metrics


def _mask_loss(logits_BMSS: Tensor, truth_BMSS: Tensor) -> Tensor:
    """Return twice the binary cross-entropy and the dice loss of each mask, summed: (B, M)."""
    bce = F.binary_cross_entropy_with_logits(logits_BMSS, truth_BMSS, reduction="none")
    probs = logits_BMSS.sigmoid()
    common = (probs * truth_BMSS).sum(PIXEL_DIMS)
    drawn = probs.sum(PIXEL_DIMS)
    true = truth_BMSS.sum(PIXEL_DIMS)
    dice = 1 - (2 * common + 1) / (drawn + true + 1)
    return 2 * bce.mean(PIXEL_DIMS) + dice


def _mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of bool masks (..., S, S)."""
    intersection = (a & b).sum(PIXEL_DIMS)
    union = (a | b).sum(PIXEL_DIMS)
    return intersection / union.clamp(min=1)


def train(
    decoder: Path,
    out: Path,
    settings: RefinerSettings,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = ignore_progress,
) -> RefinerStage:
    """Train the head to the last step, from the checkpoint in `out` if there is one.

    `decoder` is the folder of the supervised stage, or of reinforcement learning.
    """
    trained = trained_model(decoder)
    trained.model.to(device)
    stage = RefinerStage(settings, trained)
    resume(stage, out)
    run_stage(stage, out, on_progress)
    return stage
