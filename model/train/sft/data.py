"""Batches of scenes for training: several queries share one image, and every label we can draw is
given.

Shapes: I images, K queries of an image, T tokens of a query (padded), P image tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wordmask.model.decoding.path_tokens import PATH_SCALE
from wordmask.model.decoding.prompt import build_prompt
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.image_crops import crop_image
from wordmask.model.nn.region import coord_bin, size_bin
from wordmask.model.scenes.canvas import Scene, unit_box
from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.compose import SIZE_NAMES
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.expressions import Expression
from wordmask.model.scenes.nouns import NOUNS
from wordmask.model.scenes.shapes import SHAPES
from wordmask.model.scenes.splits import TRAIN_SEEDS
from wordmask.model.scenes.templates import SYNONYMS
from wordmask.model.train.targets import patch_owners, patch_shares, path_target

IGNORE = -100
NAMES = (*NOUNS, *SHAPES)
SIZES = (*SIZE_NAMES, "large")
TAUGHT_ABSENT = (
    0.2  # share of expressions: more than are asked elsewhere, as to find nothing is learned last
)
BY_DISTANCE = ("closest", "next-to", "farthest", "closest-to-placed")  # templates
# Up to this share of an image's expressions is by distance, where they can be. No other relation
# needs to know where what it is to lies: the one dog left of the car is the leftmost dog, too.
TAUGHT_DISTANCE = 0.3
MAX_RANK = 6  # ordinal labels: how many like objects lie before this one, 0..5


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one step. Labels are `IGNORE` (or -1 for bins) where nothing is to be learned."""

    crops: Tensor  # (N, crop, crop, 3) uint8
    tilings: list[tuple[int, int]]
    ids: Tensor  # (I, K, T) token ids
    coords: Tensor  # (I, K, T) value of a coordinate token, unit of image, 0 elsewhere
    sizes: Tensor  # (I, K, T, 2) value of a size token, 0 elsewhere
    next_id: Tensor  # (I, K, T) label: the next token
    next_coord: Tensor  # (I, K, T) label: bin of the next coordinate, -1 elsewhere
    next_size: Tensor  # (I, K, T, 2) label: bins of the next size, -1 elsewhere
    pointer: Tensor  # (I, K) position of the last prompt token
    target_name: (
        Tensor  # (I, K) place of the target's name in `NAMES`, `IGNORE` where there is no target
    )
    # (I, K, 1 + P) share of the target in each patch, sums to 1; where there is none, the first is
    # 1
    target_share: Tensor
    # (I, K, T, P) which patches a name, colour or size fits, at its last token; false for other
    # tokens
    word_fits: Tensor
    is_phrase: (
        Tensor  # (I, K, T) whether a token is the last of a name, which a colour may stand before
    )
    # (I, K, T, 1 + P) the patches that both fit, each alike, sums to 1; where there are none, the
    # first is 1
    phrase_share: Tensor
    patch_labels: (
        Tensor  # (I, P, C) classes of the object that owns each patch: name, colour, size, ranks
    )
    patch_box: Tensor  # (I, P, 4) its box (cx, cy, w, h), unit of image, NaN for background


class SceneBatches(Dataset[Batch]):
    """Batch number `step` is a function of (seed, step, process) alone, so a resumed run sees what
    the first would have seen.

    `process`: which of those that train together it is for (`process_rank`).
    """

    def __init__(
        self,
        *,
        config: MoondreamSegmentationConfig,
        tokenizer: PathTokenizer,
        questions: SceneDataset,
        seed: int,
        steps: range,
        images: int,
        queries: int,
        path_every: int,
        n_objects: tuple[int, int],
        large_share: float = 0.0,
        process: int = 0,
    ) -> None:
        """`path_every`: steps from one whose sequences have their paths to the next; those of the
        others end after the size.
        """
        self.config, self.tokenizer, self.questions, self.steps, self.seed = (
            config,
            tokenizer,
            questions,
            steps,
            (seed, process),
        )
        self.images, self.queries, self.path_every, self.n_objects, self.large_share = (
            images,
            queries,
            path_every,
            n_objects,
            large_share,
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        cv2.setNumThreads(1)
        step = self.steps[index]
        rng = np.random.default_rng((*self.seed, step))
        samples = [self._sample(rng, paths=step % self.path_every == 0) for _ in range(self.images)]
        return _collate(samples, self.config)

    def _sample(self, rng: np.random.Generator, *, paths: bool) -> Sample:
        large = rng.random() < self.large_share
        crop = self.config.vision.crop_size
        size = (
            {
                side: int(rng.integers(crop + crop // 12, 2 * crop + crop // 6))
                for side in ("height", "width")
            }
            if large
            else {}
        )
        while True:
            seed = int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop))
            scene = self.questions.scene(seed, n_objects=self.n_objects, **size)
            expressions = self._expressions(scene, seed)
            if len(expressions) == self.queries:
                return self._encode(scene, expressions, paths)

    def _expressions(self, scene: Scene, seed: int) -> list[Expression]:
        by_distance = self.questions.expressions(
            scene, seed, int(TAUGHT_DISTANCE * self.queries), absent=0, templates=BY_DISTANCE
        )
        said = {expression.text for expression in by_distance}
        others = self.questions.expressions(scene, seed, self.queries, absent=TAUGHT_ABSENT)
        return [*by_distance, *(other for other in others if other.text not in said)][
            : self.queries
        ]

    def _encode(self, scene: Scene, expressions: list[Expression], paths: bool) -> Sample:
        crops = crop_image(scene.image_HW3, self.config.vision)
        queries = [self._query(scene, expression, paths) for expression in expressions]
        vision = self.config.vision
        shares = patch_shares(scene.instance_HW, vision.crop_size, vision.grid)
        nowhere = np.zeros(vision.n_tokens, np.float32)
        targets = np.stack(
            [
                nowhere if e.target is None or e.target >= len(shares) else shares[e.target]
                for e in expressions
            ]
        )
        owners = patch_owners(scene.instance_HW, vision.crop_size, vision.grid)
        labels, boxes = object_labels(scene)
        background = np.zeros((1, labels.shape[1]), labels.dtype)
        return Sample(
            crops=crops.crops_NHWC,
            tiling=crops.tiling,
            queries=queries,
            target_share=share_or_first(targets),
            patch_labels=np.concatenate([labels, background])[owners],
            patch_box=np.concatenate([boxes, np.full((1, 4), np.nan)])[owners],
        )

    def _query(self, scene: Scene, expression: Expression, paths: bool) -> QuerySample:
        tokens = self.config.tokens
        prompt = build_prompt(expression.text, (), self.tokenizer, tokens)
        begin = len(tokens.prompt_prefix)
        words = {
            begin + place: labels
            for place, labels in attributes_of(expression.text, self.tokenizer).items()
        }
        if expression.target is None:
            return QuerySample(
                ids=[*prompt.ids, tokens.eos_id],
                prompt_length=len(prompt.ids),
                box=None,
                name=IGNORE,
                words=words,
            )
        target = scene.objects[expression.target]
        ids = [*prompt.ids, tokens.coord_id, tokens.coord_id, tokens.size_id]
        if paths:
            ids += [
                *self.tokenizer.path_ids(path_target(target.mask_HW, target.box)),
                tokens.eos_id,
            ]
        return QuerySample(
            ids=ids,
            prompt_length=len(prompt.ids),
            box=unit_box(target.box, *target.mask_HW.shape),
            name=NAMES.index(target.name),
            words=words,
        )


@dataclass(frozen=True, kw_only=True)
class QuerySample:
    ids: list[int]
    prompt_length: int
    box: tuple[float, float, float, float] | None  # None where nothing is meant
    name: int
    words: dict[int, list[tuple[int, int]]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    crops: np.ndarray
    tiling: tuple[int, int]
    queries: list[QuerySample]
    target_share: np.ndarray
    patch_labels: np.ndarray
    patch_box: np.ndarray


def object_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Classes of each object, (objects, C), 0 being background, and boxes (objects, 4).

    Classes: name, colour (the last one: none), size, then ranks: how many objects of the same name,
    of the same colour, and of any kind lie to the left, to the right, above and below (by centre).
    """
    boxes = np.array([unit_box(o.box, *o.mask_HW.shape) for o in scene.objects]).reshape(-1, 4)
    name = np.array([NAMES.index(o.name) for o in scene.objects], int)
    colour = np.array(
        [COLOUR_NAMES.index(o.colour) if o.colour else len(COLOUR_NAMES) for o in scene.objects],
        int,
    )
    size = np.array([SIZES.index(o.size_name) for o in scene.objects], int)
    groups = (
        name[:, None] == name,
        colour[:, None] == colour,
        np.ones((len(name), len(name)), bool),
    )
    before = [sign * boxes[:, axis] for axis in (0, 1) for sign in (1, -1)]
    ranks = [
        (group & (place[None, :] < place[:, None])).sum(axis=1)
        for group in groups
        for place in before
    ]
    ranks = [np.minimum(rank, MAX_RANK - 1) for rank in ranks]
    return np.stack([name, colour, size, *ranks], axis=1) + 1, boxes


N_CLASSES = (len(NAMES) + 1, len(COLOUR_NAMES) + 2, len(SIZES) + 1, *[MAX_RANK + 1] * 12)


def share_or_first(covered: np.ndarray) -> np.ndarray:
    """(..., P) of how much of each patch something covers, as shares (..., 1 + P) that sum to 1;
    all in the first, where it covers none.

    The first stands for the token that begins the prefix. What looks there has found nothing.
    """
    nothing = ~covered.any(axis=-1, keepdims=True)
    shares = np.concatenate([nothing, covered], axis=-1)
    return shares / shares.sum(axis=-1, keepdims=True)


def attributes_of(text: str, tokenizer: PathTokenizer) -> dict[int, list[tuple[int, int]]]:
    """The place, among an expression's tokens, of the last token of each name, colour and size in
    it: which of the patch labels it is about, and their class. Of a name, also those of the colour
    right before it."""
    spans = tokenizer.fast(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    ends = {stop: place for place, (_, stop) in enumerate(spans)}
    found: dict[int, list[tuple[int, int]]] = {}
    before = -1, (0, 0)  # where the last word ended, and its label
    for match in _ATTRIBUTE.finditer(text.lower()):
        label = _LABELS[match.group()]
        if match.end() in ends:
            coloured = label[0] == 0 and before[1][0] == 1 and before[0] == match.start() - 1
            found[ends[match.end()]] = [label, before[1]] if coloured else [label]
        before = match.end(), label
    return found


_LABELS = {
    word: (column, value + 1)
    for column, group in enumerate((NAMES, COLOUR_NAMES, SIZES))
    for value, name in enumerate(group)
    for word in SYNONYMS.get(name, (name,))
}
_ATTRIBUTE = re.compile(
    "|".join(rf"\b{re.escape(word)}\b" for word in sorted(_LABELS, key=len, reverse=True))
)


def _collate(samples: list[Sample], config: MoondreamSegmentationConfig) -> Batch:
    images, queries = len(samples), len(samples[0].queries)
    length = max(len(q.ids) for s in samples for q in s.queries)
    shape = (images, queries, length)
    ids, coords, sizes = (
        np.zeros(shape, np.int64),
        np.zeros(shape, np.float32),
        np.zeros((*shape, 2), np.float32),
    )
    next_id, next_coord, next_size = (
        np.full(shape, IGNORE),
        np.full(shape, -1.0, np.float32),
        np.full((*shape, 2), -1.0, np.float32),
    )
    pointer = np.zeros(shape[:2], np.int64)
    word_fits, phrase_fits = (np.zeros((*shape, config.vision.n_tokens), bool) for _ in range(2))
    is_phrase = np.zeros(shape, bool)
    n_coord, n_size = config.region.coord_out_dim, config.region.size_out_dim // 2
    for i, sample in enumerate(samples):
        for k, query in enumerate(sample.queries):
            p, n = query.prompt_length, len(query.ids)
            ids[i, k, :n] = query.ids
            next_id[i, k, p - 1 : n - 1] = query.ids[p:]
            pointer[i, k] = p - 1
            if query.box is not None:
                cx, cy, w, h = query.box
                coords[i, k, p : p + 2] = cx, cy
                sizes[i, k, p + 2] = w, h
                next_coord[i, k, p - 1 : p + 1] = coord_bin(cx, n_coord), coord_bin(cy, n_coord)
                next_size[i, k, p + 1] = size_bin(w, n_size), size_bin(h, n_size)
            for t, labels in query.words.items():
                fits = [sample.patch_labels[:, column] == value for column, value in labels]
                word_fits[i, k, t], phrase_fits[i, k, t] = fits[0], np.all(fits, axis=0)
                is_phrase[i, k, t] = labels[0][0] == 0
    arrays = {
        "crops": np.concatenate([s.crops for s in samples]),
        "ids": ids,
        "coords": coords,
        "sizes": sizes,
        "next_id": next_id,
        "next_coord": next_coord,
        "next_size": next_size,
        "pointer": pointer,
        "word_fits": word_fits,
        "is_phrase": is_phrase,
        "phrase_share": share_or_first(phrase_fits).astype(np.float32),
        "target_name": np.array([[query.name for query in s.queries] for s in samples], np.int64),
        "target_share": np.stack([s.target_share for s in samples]).astype(np.float32),
        "patch_labels": np.stack([s.patch_labels for s in samples]).astype(np.int64),
        "patch_box": np.stack([s.patch_box for s in samples]).astype(np.float32),
    }
    return Batch(
        tilings=[s.tiling for s in samples],
        **{name: torch.from_numpy(value) for name, value in arrays.items()},
    )


def batch_stream(dataset: SceneBatches, workers: int) -> Iterator[Batch]:
    """Batches in order, made in worker processes ahead of the step."""
    prefetch = {"prefetch_factor": 8} if workers else {}
    return iter(
        DataLoader(dataset, batch_size=None, shuffle=False, num_workers=workers, **prefetch)
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All but the crops, which are normalised on their way there."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {
        k: v.to(device, non_blocking=True)
        for k, v in values.items()
        if isinstance(v, Tensor) and k != "crops"
    }
    return Batch(**values | moved)


def number_ids(tokenizer: PathTokenizer) -> list[int]:
    """Ids of the integers 0-960, in order."""
    return tokenizer.path_ids(str(n) for n in range(PATH_SCALE + 1))
