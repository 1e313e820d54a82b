"""Stage 3 of the paper: the refiner learns from coarse masks and their ground truth.

The paper's coarse inputs are rollouts of the reinforcement-learning stage. How many of a question,
of what quality, and how the head learns from them is not in the abstract. What is ours:

- Of each question several rollouts are drawn at that stage's temperature, once before the first
  step, and their rasters kept whatever their quality, unless they miss the thing altogether. Half
  of a batch is of these; the other half is perturbed ground truth of new scenes, so that the head
  does not learn the few thousand rollouts by heart.
- Losses: binary cross-entropy plus dice on each of the four masks, of which the best counts fully
  and the others a little, so that all stay alive; squared error of the predicted IoUs.
- A random number of iterations without gradient runs first, then one step is learned: the head sees
  its own outputs.
- The encoder is frozen: it serves the decoder too.

Run: `python -m wordmask.model.train.refiner.train --sft runs/sft --out runs/refiner` (again with
the same --out to resume).
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wordmask.model.decoding.path_tokens import PATH_SCALE
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.masks.crops import cut_crop
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.nn.image_crops import normalise
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.refiner import Candidates
from wordmask.model.scenes.canvas import Scene, unit_box
from wordmask.model.scenes.dataset import SOURCES, SceneDataset
from wordmask.model.scenes.splits import TRAIN_SEEDS
from wordmask.model.train.loop import OnProgress, ignore_progress, save_checkpoint, warmup_cosine
from wordmask.model.train.rl.rewards import filled
from wordmask.model.train.rl.rollouts import Policy, generate_rollouts, make_prompts
from wordmask.model.train.rl.train import RlSettings
from wordmask.model.train.sft.train import LOG_EVERY
from wordmask.model.train.small_model import trained_model
from wordmask.model.train.targets import path_target

LEAST_MET = 0.1  # of the paths: with fewer the decoder has learned nothing yet


@dataclass(frozen=True, kw_only=True)
class RefinerSettings:
    """`others` is the weight of the masks that are not the best of the four; `drawn` rows of a
    batch come from a pool of `pool_rows` rollouts, `rollouts` of a question, the rest are perturbed
    ground truth."""

    seed: int = 1
    scenes: str = "fetched"  # a source of `SceneDataset`
    steps: int = 4000
    batch: int = 24
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    others: float = 0.1
    drawn: int = 12
    rollouts: int = 4
    pool_rows: int = 2400
    checkpoint_every: int = 250
    workers: int = 1


class RefinerSamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batch `step`: image crops (B, S, S, 3) uint8, coarse masks and true masks (B, S, S)
    float32.
    """

    def __init__(self, settings: RefinerSettings, steps: range, size: int) -> None:
        self.settings, self.steps, self.size = settings, steps, size
        self.count = settings.batch - settings.drawn
        self.questions = SceneDataset(settings.scenes, side=size)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.settings.seed, self.steps[index], 3))
        rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while len(rows) < self.count:
            scene = self.questions.scene(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)))
            for target in rng.permutation(len(scene.objects))[:3]:
                row = perturbed_sample(scene, int(target), self.size, rng)
                if row is not None:
                    rows.append(row)
        images, coarse, truth = (np.stack(part) for part in zip(*rows[: self.count], strict=True))
        return torch.from_numpy(images), torch.from_numpy(coarse), torch.from_numpy(truth)


def perturbed_sample(
    scene: Scene, target: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A coarse mask as a decoder might draw it: the target's path with its box moved and stretched,
    its vertices jittered and some of them dropped; how much is drawn from a wide range, so that all
    qualities occur."""
    truth = scene.objects[target]
    cx, cy, w, h = unit_box(truth.box, *truth.mask_HW.shape)
    amount = rng.beta(1.2, 2.5) * 0.35
    shift = rng.normal(0, amount, 4) * (0.5, 0.5, 0.6, 0.6)
    box = (cx + shift[0] * w, cy + shift[1] * h, w * math.exp(shift[2]), h * math.exp(shift[3]))
    path = jittered_path(
        path_target(truth.mask_HW, truth.box, max_vertices=int(rng.integers(6, 17))), amount, rng
    )
    coarse = rasterize(path, box, *truth.mask_HW.shape)
    return refiner_sample(scene.image_HW3, coarse, box, truth.mask_HW, size)


def refiner_sample(
    image_HW3: np.ndarray,
    coarse_HW: np.ndarray,
    box: tuple[float, float, float, float],
    truth_HW: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """What the refiner is given, and the truth in the same crop. None if the coarse mask is
    empty.
    """
    crop = cut_crop(image_HW3, coarse_HW, box, size) if coarse_HW.any() else None
    if crop is None:
        return None
    x0, y0, x1, y1 = crop.xyxy
    truth = cv2.resize(
        truth_HW[y0:y1, x0:x1].astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR
    )
    return crop.image, crop.mask, (truth > 0.5).astype(np.float32)


def jittered_path(tokens: list[str], amount: float, rng: np.random.Generator) -> str:
    """Path string (unit of box) of path tokens with noise on every number."""
    noisy = (
        str(round(float(t) / PATH_SCALE + rng.normal(0, 0.3 * amount), 3)) if t.isdigit() else t
        for t in tokens
    )
    return " ".join(noisy)


def rollout_pool(
    model: MoondreamSegmentation, tokenizer: PathTokenizer, settings: RefinerSettings
) -> list[Tensor]:
    """Images, coarse masks and truths, each (rows, S, S, ...), of training scenes as the decoder
    draws them at random.

    A rollout that misses the target altogether teaches nothing and is left out. ValueError if
    nearly all do.
    """
    policy, asks = (
        Policy.of(model, tokenizer, RlSettings.temperature),
        SceneDataset(settings.scenes, side=model.config.vision.crop_size),
    )
    rng = np.random.default_rng((settings.seed, 11))
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    tried = 0
    while len(rows) < settings.pool_rows:
        if len(rows) < tried * LEAST_MET - 64:
            raise ValueError(
                f"{len(rows)} of {tried} paths met their target at all: train the decoder in"
                f" {settings.scenes} scenes longer first"
            )
        questions = [
            q
            for q in make_prompts(
                policy, asks, rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop, 16).tolist()
            )
            if q.truth_HW.any()
        ]
        drawn = generate_rollouts(policy, questions, settings.rollouts, int(rng.integers(2**62)))
        tried += len(questions) * settings.rollouts
        for question, group in zip(questions, drawn, strict=True):
            for rollout in group:
                coarse = filled(rollout, tokenizer, *question.truth_HW.shape)
                if (coarse & question.truth_HW).any():
                    row = refiner_sample(
                        question.image_HW3,
                        coarse,
                        rollout.box,
                        question.truth_HW,
                        model.config.vision.crop_size,
                    )
                    rows += [] if row is None else [row]
    return [
        torch.from_numpy(np.stack(part[: settings.pool_rows])) for part in zip(*rows, strict=True)
    ]


def refiner_loss(
    candidates: Candidates, truth_BSS: Tensor, others: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step, and what to log. Masks: BCE + dice, min of the four; IoU head: squared
    error on all four.
    """
    logits = candidates.logits.float()
    truth = truth_BSS[:, None].expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((-2, -1))
    probs = logits.sigmoid()
    dice = 1 - (2 * (probs * truth).sum((-2, -1)) + 1) / (
        probs.sum((-2, -1)) + truth.sum((-2, -1)) + 1
    )
    per_mask_BM = 2 * bce + dice
    best = per_mask_BM.min(dim=1).values
    hard = logits > 0
    inside = truth > 0.5
    iou_BM = (hard & inside).sum((-2, -1)) / (hard | inside).sum((-2, -1)).clamp(min=1)
    iou_error = F.mse_loss(candidates.iou.float(), iou_BM)
    chosen = iou_BM.gather(1, candidates.iou.argmax(dim=1, keepdim=True)).mean()
    log = {"mask": best.mean().item(), "iou_error": iou_error.item(), "chosen_iou": chosen.item()}
    return ((1 - others) * best + others * per_mask_BM.mean(dim=1)).mean() + iou_error, log


def _step(
    model: MoondreamSegmentation,
    batch: tuple[Tensor, Tensor, Tensor],
    settings: RefinerSettings,
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    images, coarse, truth = batch[0], batch[1].to(model.device), batch[2].to(model.device)
    with torch.no_grad():
        features = model.model.vision(normalise(images.numpy(), coarse.device, torch.float32))
    fused = model.head.fuse(features.final, features.early)
    mask, before = coarse, int(rng.integers(0, model.config.refiner.iterations))
    if before:
        with torch.no_grad():
            mask = model.head.iterate(fused, coarse, before).probs
    loss, log = refiner_loss(model.head(fused, mask), truth, settings.others)
    inside, drawn = truth > 0.5, coarse > 0.5
    log["coarse_iou"] = (
        ((drawn & inside).sum((-2, -1)) / (drawn | inside).sum((-2, -1)).clamp(min=1)).mean().item()
    )
    return loss, log


def learning_rate(step: int, settings: RefinerSettings) -> float:
    """Linear warm-up, then a cosine to a fiftieth."""
    return warmup_cosine(
        step, peak=settings.learning_rate, steps=settings.steps, warmup=settings.warmup, floor=0.02
    )


def train(
    sft: Path, out: Path, settings: RefinerSettings, tell: OnProgress = ignore_progress
) -> None:
    """Train the head on top of the checkpoint `sft/last.pt`, from the checkpoint in `out` if there
    is one. `sft` is the folder of either stage that trains the decoder."""
    out.mkdir(parents=True, exist_ok=True)
    decoder = trained_model(sft)
    model = decoder.model
    model.model.requires_grad_(False)
    model.head.requires_grad_()
    optimizer = torch.optim.AdamW(
        model.head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    first = 0
    if (out / "last.pt").exists():
        saved = torch.load(out / "last.pt", weights_only=True)
        first = saved["step"]
        model.head.load_state_dict(saved["head"])
        optimizer.load_state_dict(saved["optimizer"])
    if first >= settings.steps:
        return
    pool = rollout_pool(model, decoder.tokenizer, settings)
    dataset = RefinerSamples(settings, range(first, settings.steps), model.config.vision.crop_size)
    # Spawned, not forked: OpenCV's threads, which drew the pool, do not survive a fork.
    context = {"multiprocessing_context": "spawn", "prefetch_factor": 8} if settings.workers else {}
    stream = DataLoader(dataset, batch_size=None, num_workers=settings.workers, **context)
    sums: dict[str, float] = {}
    began = time.perf_counter()
    with (out / "log.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        for step, batch in enumerate(
            track(stream, description="refiner", total=len(dataset), console=Console(stderr=True)),
            start=first,
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            rng = np.random.default_rng((settings.seed, step, 5))
            picked = torch.from_numpy(rng.choice(settings.pool_rows, settings.drawn, replace=False))
            mixed = tuple(
                torch.cat([part, rollouts[picked]])
                for part, rollouts in zip(batch, pool, strict=True)
            )
            loss, log = _step(model, mixed, settings, rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.head.parameters(), 1.0)
            optimizer.step()
            sums = {name: sums.get(name, 0.0) + value for name, value in log.items()}
            if (step + 1) % LOG_EVERY == 0:
                rate = (time.perf_counter() - began) / LOG_EVERY
                means = {name: total / LOG_EVERY for name, total in sums.items()}
                writer.writerow(
                    [
                        "refiner",
                        step + 1,
                        f"s_per_step={rate:.3f}",
                        *(f"{name}={mean:.4f}" for name, mean in means.items()),
                    ]
                )
                file.flush()
                tell("refiner", step + 1, settings.steps, means)
                sums, began = {}, time.perf_counter()
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                save_checkpoint(
                    out / "last.pt",
                    step=step + 1,
                    head=model.head.state_dict(),
                    optimizer=optimizer.state_dict(),
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sft",
        type=Path,
        required=True,
        help="folder of the supervised stage, or of the one after it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of checkpoints and log; an existing one is resumed",
    )
    parser.add_argument(
        "--scenes", choices=SOURCES, default=RefinerSettings.scenes, help="what scenes are made of"
    )
    parser.add_argument("--steps", type=int, default=RefinerSettings.steps)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.sft, args.out, RefinerSettings(scenes=args.scenes, steps=args.steps))


if __name__ == "__main__":
    main()
