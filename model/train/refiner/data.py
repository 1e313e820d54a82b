"""Coarse masks and their ground truth: rollouts of the decoder, and perturbed ground truth.

Shapes: B rows, S side of a crop (crop_size pixels).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wordmask.model.decoding.path_tokens import PATH_SCALE
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.masks.boxes import clip_box
from wordmask.model.masks.crops import cut_crop
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.scenes.canvas import Scene, unit_box
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import TRAIN_SEEDS
from wordmask.model.train.processes import process_rank
from wordmask.model.train.refiner.config import RefinerSettings
from wordmask.model.train.rl.rewards import fill_rollout
from wordmask.model.train.rl.rollouts import Policy, ScenePrompt, generate_rollouts, make_prompts
from wordmask.model.train.targets import path_target

LEAST_MET = 0.1  # of the paths: with fewer the decoder has learned nothing yet
LEAST_TRIED = 640  # paths, before that is judged
TARGETS_OF_SCENE = 3  # most objects of a scene whose ground truth is perturbed
PROMPTS_AT_ONCE = 16
PREFETCHED_BATCHES = 8  # of each worker process

Box = tuple[float, float, float, float]


class CoarseMasks(NamedTuple):
    """Rows that the refiner learns from."""

    image_BSS3: Tensor  # uint8
    coarse_BSS: Tensor  # float32, 0..1
    truth_BSS: Tensor  # float32, 0 or 1

    def select(self, rows: Tensor) -> CoarseMasks:
        """Return the given rows only."""
        return CoarseMasks(*(part[rows] for part in self))

    def joined(self, others: CoarseMasks) -> CoarseMasks:
        """Return these rows and then others."""
        pairs = zip(self, others, strict=True)
        return CoarseMasks(*(torch.cat(pair) for pair in pairs))


Row = tuple[np.ndarray, np.ndarray, np.ndarray]  # one row of `CoarseMasks`


def stack_rows(rows: Iterable[Row]) -> CoarseMasks:
    """Stack rows into tensors."""
    images, coarse, truths = zip(*rows, strict=True)
    return CoarseMasks(
        image_BSS3=torch.from_numpy(np.stack(images)),
        coarse_BSS=torch.from_numpy(np.stack(coarse)),
        truth_BSS=torch.from_numpy(np.stack(truths)),
    )


class PerturbedTruth(Dataset[CoarseMasks]):
    """Rows of each step that are perturbed ground truth: functions of seed, step and process."""

    def __init__(self, settings: RefinerSettings, steps: range, size: int) -> None:
        self.settings = settings
        self.steps = steps
        self.size = size
        self.count = settings.batch - settings.drawn
        self.scenes = SceneDataset(settings.scenes, side=size)
        self.process = process_rank()

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> CoarseMasks:
        cv2.setNumThreads(1)
        step = self.steps[index]
        rng = np.random.default_rng((self.settings.seed, step, 3, self.process))
        rows: list[Row] = []
        while len(rows) < self.count:
            rows += self._scene_rows(rng)
        return stack_rows(rows[: self.count])

    def _scene_rows(self, rng: np.random.Generator) -> list[Row]:
        """Return rows of some objects of a random scene."""
        seed = rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)
        scene = self.scenes.scene(int(seed))
        targets = rng.permutation(len(scene.objects))
        rows = []
        for target in targets[:TARGETS_OF_SCENE]:
            row = perturbed_row(scene, int(target), self.size, rng)
            if row is not None:
                rows.append(row)
        return rows


def perturbed_stream(settings: RefinerSettings, steps: range, size: int) -> DataLoader[CoarseMasks]:
    """Return the rows of steps in order, made in worker processes ahead of the step."""
    options: dict[str, Any] = {}
    if settings.workers:
        # Spawned, not forked: OpenCV's threads, which drew the pool, do not survive a fork.
        options["multiprocessing_context"] = "spawn"
        options["prefetch_factor"] = PREFETCHED_BATCHES
    dataset = PerturbedTruth(settings, steps, size)
    return DataLoader(dataset, batch_size=None, num_workers=settings.workers, **options)


def perturbed_row(scene: Scene, target: int, size: int, rng: np.random.Generator) -> Row | None:
    """Return a coarse mask as a decoder might draw it; None if it is empty.

    The target's box is moved and stretched, its vertices are jittered and some of them dropped. The
    amount is drawn from a wide range, so that all qualities occur.
    """
    truth = scene.objects[target]
    amount = rng.beta(1.2, 2.5) * 0.35
    height, width = truth.mask_HW.shape
    true_box = unit_box(truth.box, height, width)
    box = clip_box(_jittered_box(true_box, amount, rng))
    vertices = int(rng.integers(6, 17))
    tokens = path_target(truth.mask_HW, truth.box, max_vertices=vertices)
    path = jittered_path(tokens, amount, rng)
    coarse_HW = rasterize(path, box, height, width)
    return refiner_row(scene.image_HW3, coarse_HW, box, truth.mask_HW, size)


def _jittered_box(box: Box, amount: float, rng: np.random.Generator) -> Box:
    """Move and stretch a box (cx, cy, w, h)."""
    cx, cy, w, h = box
    noise = rng.normal(0, amount, 4)
    dx, dy, log_w, log_h = noise * (0.5, 0.5, 0.6, 0.6)
    moved = (cx + dx * w, cy + dy * h)
    stretched = (w * math.exp(log_w), h * math.exp(log_h))
    return *moved, *stretched


def jittered_path(tokens: list[str], amount: float, rng: np.random.Generator) -> str:
    """Return the path (unit of box) of path tokens with noise on every number."""
    words = []
    for token in tokens:
        word = token
        if token.isdigit():
            noise = rng.normal(0, 0.3 * amount)
            value = float(token) / PATH_SCALE + noise
            word = str(round(float(value), 3))
        words.append(word)
    return " ".join(words)


def refiner_row(
    image_HW3: np.ndarray, coarse_HW: np.ndarray, box: Box, truth_HW: np.ndarray, size: int
) -> Row | None:
    """Return what the refiner is given, and the truth in the same crop; None if nothing is drawn.

    `box` is the decoder's (cx, cy, w, h) in unit of image, clipped to it; `size` the side of the
    crop in pixels.
    """
    if not coarse_HW.any():
        return None
    crop = cut_crop(image_HW3, coarse_HW, box, size)
    if crop is None:
        return None
    x0, y0, x1, y1 = crop.xyxy
    window = truth_HW[y0:y1, x0:x1].astype(np.float32)
    resized = cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR)
    is_inside = resized > 0.5
    return crop.image, crop.mask, is_inside.astype(np.float32)


def rollout_pool(
    model: MoondreamSegmentation, tokenizer: PathTokenizer, settings: RefinerSettings
) -> CoarseMasks:
    """Sample rollouts of training scenes.

    A rollout that misses the target altogether teaches nothing and is left out.

    Raises:
        ValueError: if nearly all miss their targets.
    """
    policy = Policy.of(model, tokenizer, settings.temperature)
    size = model.config.vision.crop_size
    scenes = SceneDataset(settings.scenes, side=size)
    rng = np.random.default_rng((settings.seed, 11, 0, process_rank()))
    rows: list[Row] = []
    tried = 0
    while len(rows) < settings.pool_rows:
        least = (tried - LEAST_TRIED) * LEAST_MET
        if len(rows) < least:
            raise ValueError(
                f"{len(rows)} of {tried} paths met their target at all: train the decoder in"
                f" {settings.scenes} scenes longer first"
            )
        present = _present_prompts(policy, scenes, rng)
        seed = int(rng.integers(2**62))
        rollouts = generate_rollouts(policy, present, settings.rollouts, seed)
        for prompt, group in zip(present, rollouts, strict=True):
            tried += len(group)
            rows += _met_rows(prompt, group, tokenizer, size)
    return stack_rows(rows[: settings.pool_rows])


def _present_prompts(
    policy: Policy, scenes: SceneDataset, rng: np.random.Generator
) -> list[ScenePrompt]:
    """Return the prompts of random scenes that name something there is."""
    seeds = rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop, PROMPTS_AT_ONCE)
    prompts = make_prompts(policy, scenes, seeds.tolist())
    return [prompt for prompt in prompts if prompt.truth_HW.any()]


def _met_rows(
    prompt: ScenePrompt, rollouts: list[Decoded], tokenizer: PathTokenizer, size: int
) -> list[Row]:
    """Return a row of each rollout that covers some of its target."""
    rows = []
    truth_HW = prompt.truth_HW
    for rollout in rollouts:
        coarse_HW = fill_rollout(rollout, tokenizer, *truth_HW.shape)
        common_HW = coarse_HW & truth_HW
        if not common_HW.any():
            continue
        row = refiner_row(prompt.image_HW3, coarse_HW, rollout.clipped_box, truth_HW, size)
        if row is not None:
            rows.append(row)
    return rows
