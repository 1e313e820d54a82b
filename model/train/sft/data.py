"""Scenes for the supervised stage: several queries share one image, and every label is given.

Shapes: K queries of an image, P image tokens, C classes of the patch labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from wordmask.model.decoding.prompt import build_prompt
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.image_crops import crop_image
from wordmask.model.scenes.canvas import Scene, unit_box
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.expressions import Expression
from wordmask.model.scenes.splits import TRAIN_SEEDS
from wordmask.model.train.sft.batch import IGNORE, ImageSample, QuerySample, SceneBatch, collate
from wordmask.model.train.sft.config import Phase
from wordmask.model.train.sft.labels import (
    NAMES,
    Label,
    attributes_of,
    object_labels,
    share_or_first,
)
from wordmask.model.train.targets import patch_owners, patch_shares, path_target

# Share of expressions that name nothing: more than elsewhere, as finding nothing is learned last.
ABSENT_SHARE = 0.2
DISTANCE_TEMPLATES = ("closest", "next-to", "farthest", "closest-to-placed")
# Up to this share of an image's expressions is by distance, where they can be. No other relation
# needs to know where what it is to lies: the one dog left of the car is the leftmost dog, too.
DISTANCE_SHARE = 0.3
PREFETCHED_BATCHES = 8  # of each worker process


class SceneBatches(Dataset[SceneBatch]):
    """Batches of a phase, one a step.

    The batch of a step is a function of seed, process and step alone, so that a resumed run trains
    on what the stopped one would have trained on.
    """

    def __init__(
        self,
        *,
        config: MoondreamSegmentationConfig,
        tokenizer: PathTokenizer,
        scenes: SceneDataset,
        phase: Phase,
        steps: range,
        seed: int,
        process: int = 0,
    ) -> None:
        """Draw batches of some steps; `process` is the rank of that which trains on them."""
        self.config = config
        self.tokenizer = tokenizer
        self.scenes = scenes
        self.phase = phase
        self.steps = steps
        self.seed = (seed, process)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> SceneBatch:
        cv2.setNumThreads(1)
        step = self.steps[index]
        rng = np.random.default_rng((*self.seed, step))
        with_paths = step % self.phase.path_every == 0
        samples = [self._sample(rng, with_paths=with_paths) for _ in range(self.phase.images)]
        return collate(samples, self.config)

    def _sample(self, rng: np.random.Generator, *, with_paths: bool) -> ImageSample:
        """Draw scenes until one has as many expressions as an image of the phase has queries."""
        size = self._scene_size(rng)
        while True:
            seed = int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop))
            scene = self.scenes.scene(seed, n_objects=self.phase.n_objects, **size)
            expressions = self.expressions(scene, seed)
            if len(expressions) == self.phase.queries:
                return self._encode(scene, expressions, with_paths=with_paths)

    def _scene_size(self, rng: np.random.Generator) -> dict[str, int]:
        """Return height and width of a scene that is tiled; nothing where the scene decides."""
        if rng.random() >= self.phase.large_share:
            return {}
        crop = self.config.vision.crop_size
        least, most = crop + crop // 12, 2 * crop + crop // 6
        height = int(rng.integers(least, most))
        width = int(rng.integers(least, most))
        return {"height": height, "width": width}

    def expressions(self, scene: Scene, seed: int) -> list[Expression]:
        """Return up to as many different expressions about a scene as an image has queries."""
        queries = self.phase.queries
        by_distance = self.scenes.expressions(
            scene, seed, int(DISTANCE_SHARE * queries), absent=0, templates=DISTANCE_TEMPLATES
        )
        texts = {expression.text for expression in by_distance}
        others = self.scenes.expressions(scene, seed, queries, absent=ABSENT_SHARE)
        new = [expression for expression in others if expression.text not in texts]
        return [*by_distance, *new][:queries]

    def _encode(
        self, scene: Scene, expressions: list[Expression], *, with_paths: bool
    ) -> ImageSample:
        vision = self.config.vision
        crops = crop_image(scene.image_HW3, vision)
        owners = patch_owners(scene.instance_HW, vision.crop_size, vision.grid)
        labels, boxes = object_labels(scene)
        background_labels = np.zeros((1, labels.shape[1]), labels.dtype)
        background_box = np.full((1, 4), np.nan)
        return ImageSample(
            crops_NHWC=crops.crops_NHWC,
            tiling=crops.tiling,
            queries=[self._query(scene, e, with_paths=with_paths) for e in expressions],
            target_share_KP=share_or_first(self._target_cover(scene, expressions)),
            patch_labels_PC=np.concatenate([labels, background_labels])[owners],
            patch_box_P4=np.concatenate([boxes, background_box])[owners],
        )

    def _target_cover(self, scene: Scene, expressions: list[Expression]) -> np.ndarray:
        """Return how much of each patch the target of each expression covers, (K, P) in 0..1."""
        vision = self.config.vision
        shares = patch_shares(scene.instance_HW, vision.crop_size, vision.grid)
        covered = np.zeros((len(expressions), vision.n_tokens), np.float32)
        for row, expression in zip(covered, expressions, strict=True):
            if expression.target is not None and expression.target < len(shares):
                row[:] = shares[expression.target]
        return covered

    def _query(self, scene: Scene, expression: Expression, *, with_paths: bool) -> QuerySample:
        tokens = self.config.tokens
        prompt = build_prompt(expression.text, (), self.tokenizer, tokens)
        prompt_length = len(prompt.ids)
        words = self._words(expression.text)
        if expression.target is None:
            ids = [*prompt.ids, tokens.eos_id]
            return QuerySample(
                ids=ids, prompt_length=prompt_length, box=None, name=IGNORE, words=words
            )
        target = scene.objects[expression.target]
        ids = [*prompt.ids, tokens.coord_id, tokens.coord_id, tokens.size_id]
        if with_paths:
            path = path_target(target.mask_HW, target.box)
            ids += [*self.tokenizer.path_ids(path), tokens.eos_id]
        return QuerySample(
            ids=ids,
            prompt_length=prompt_length,
            box=unit_box(target.box, *target.mask_HW.shape),
            name=NAMES.index(target.name),
            words=words,
        )

    def _words(self, text: str) -> dict[int, list[Label]]:
        """Return the labels of attribute words by their positions in the prompt."""
        begin = len(self.config.tokens.prompt_prefix)
        attributes = attributes_of(text, self.tokenizer)
        return {begin + index: labels for index, labels in attributes.items()}


def batch_stream(dataset: SceneBatches, workers: int) -> Iterator[SceneBatch]:
    """Return batches in order, made in worker processes ahead of the step."""
    prefetch = PREFETCHED_BATCHES if workers else None
    loader = DataLoader(
        dataset, batch_size=None, shuffle=False, num_workers=workers, prefetch_factor=prefetch
    )
    return iter(loader)
