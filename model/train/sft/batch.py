"""Tensors of one step of the supervised stage.

Shapes: I images, K queries of an image, T tokens of a query (padded), P image tokens, C classes of
the patch labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from wordmask.model.nn.config import MoondreamSegmentationConfig, RegionConfig
from wordmask.model.nn.region import coord_bin, size_bin
from wordmask.model.train.sft.labels import NAME_COLUMN, Label, share_or_first

IGNORE = -100  # label of what no loss counts


@dataclass(frozen=True, kw_only=True)
class QuerySample:
    """One query of an image: the tokens of prompt and answer, and its labels."""

    ids: list[int]
    prompt_length: int
    box: tuple[float, float, float, float] | None  # None where nothing is meant
    name: int
    words: dict[int, list[Label]]


@dataclass(frozen=True, kw_only=True)
class ImageSample:
    """One image, its queries, and the labels of its patches."""

    crops_NHWC: np.ndarray
    tiling: tuple[int, int]
    queries: list[QuerySample]
    target_share_KP: np.ndarray
    patch_labels_PC: np.ndarray
    patch_box_P4: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SceneBatch:
    """Scenes of a step. Labels are `IGNORE` (or -1 for bins) where nothing is to be learned."""

    crops: Tensor  # (N, crop, crop, 3) uint8
    tilings: list[tuple[int, int]]
    ids: Tensor  # (I, K, T) token ids
    coords: Tensor  # (I, K, T) value of a coordinate token, unit of image, 0 elsewhere
    sizes: Tensor  # (I, K, T, 2) value of a size token, unit of image, 0 elsewhere
    next_id: Tensor  # (I, K, T) label: the next token
    next_coord: Tensor  # (I, K, T) label: bin of the next coordinate, -1 elsewhere
    next_size: Tensor  # (I, K, T, 2) label: bins of the next size, -1 elsewhere
    pointer: Tensor  # (I, K) position of the last prompt token
    target_name: Tensor  # (I, K) index of the target's name, `IGNORE` where there is no target
    # (I, K, 1 + P) share of the target in each patch, see `share_or_first`
    target_share: Tensor
    # (I, K, T, P) patches that a name, colour or size fits, at its last token; false elsewhere
    word_fits: Tensor
    # (I, K, T) whether a token is the last of a name, which a colour may stand before
    is_phrase: Tensor
    # (I, K, T, 1 + P) patches that both fit, each alike, see `share_or_first`
    phrase_share: Tensor
    # (I, P, C) classes of the object that owns each patch: name, colour, size, ranks
    patch_labels: Tensor
    patch_box: Tensor  # (I, P, 4) its box (cx, cy, w, h), unit of image, NaN for background

    def to(self, device: torch.device) -> SceneBatch:
        """Move all but the crops, which are normalised on their way to the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor) and name != "crops"
        }
        return SceneBatch(**values | moved)


def collate(samples: Sequence[ImageSample], config: MoondreamSegmentationConfig) -> SceneBatch:
    """Stack samples of as many queries each, padded to the longest query."""
    length = max(len(query.ids) for sample in samples for query in sample.queries)
    shape = (len(samples), len(samples[0].queries), length)
    arrays = _blank(shape, config.vision.n_tokens)
    for i, sample in enumerate(samples):
        for k, query in enumerate(sample.queries):
            of_query = {name: array[i, k] for name, array in arrays.items()}
            _fill_tokens(of_query, query, config.region)
            _fill_words(of_query, query, sample.patch_labels_PC)
    phrase_fits = arrays.pop("phrase_fits")
    crops = [sample.crops_NHWC for sample in samples]
    pointers = [[query.prompt_length - 1 for query in s.queries] for s in samples]
    names = [[query.name for query in s.queries] for s in samples]
    target_shares = [sample.target_share_KP for sample in samples]
    patch_labels = [sample.patch_labels_PC for sample in samples]
    patch_boxes = [sample.patch_box_P4 for sample in samples]
    arrays |= {
        "crops": np.concatenate(crops),
        "pointer": np.array(pointers, np.int64),
        "target_name": np.array(names, np.int64),
        "phrase_share": share_or_first(phrase_fits).astype(np.float32),
        "target_share": np.stack(target_shares).astype(np.float32),
        "patch_labels": np.stack(patch_labels).astype(np.int64),
        "patch_box": np.stack(patch_boxes).astype(np.float32),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return SceneBatch(tilings=[sample.tiling for sample in samples], **tensors)


def _blank(shape: tuple[int, int, int], n_patches: int) -> dict[str, np.ndarray]:
    """Return the arrays of all tokens (I, K, T, ...) before anything is filled in."""
    return {
        "ids": np.zeros(shape, np.int64),
        "coords": np.zeros(shape, np.float32),
        "sizes": np.zeros((*shape, 2), np.float32),
        "next_id": np.full(shape, IGNORE, np.int64),
        "next_coord": np.full(shape, -1.0, np.float32),
        "next_size": np.full((*shape, 2), -1.0, np.float32),
        "word_fits": np.zeros((*shape, n_patches), bool),
        "phrase_fits": np.zeros((*shape, n_patches), bool),
        "is_phrase": np.zeros(shape, bool),
    }


def _fill_tokens(arrays: dict[str, np.ndarray], query: QuerySample, config: RegionConfig) -> None:
    """Fill in the tokens of a query, their values and the labels of what comes next."""
    start, stop = query.prompt_length, len(query.ids)
    arrays["ids"][:stop] = query.ids
    arrays["next_id"][start - 1 : stop - 1] = query.ids[start:]
    if query.box is None:
        return
    cx, cy, w, h = query.box
    n_coord, n_size = config.coord_out_dim, config.size_out_dim // 2
    arrays["coords"][start : start + 2] = cx, cy
    arrays["sizes"][start + 2] = w, h
    arrays["next_coord"][start - 1] = coord_bin(cx, n_coord)
    arrays["next_coord"][start] = coord_bin(cy, n_coord)
    arrays["next_size"][start + 1] = size_bin(w, n_size), size_bin(h, n_size)


def _fill_words(
    arrays: dict[str, np.ndarray], query: QuerySample, patch_labels_PC: np.ndarray
) -> None:
    """Fill in which patches the attribute words of a query fit."""
    for token, labels in query.words.items():
        fits = [patch_labels_PC[:, column] == value for column, value in labels]
        arrays["word_fits"][token] = fits[0]
        arrays["phrase_fits"][token] = np.all(fits, axis=0)
        arrays["is_phrase"][token] = labels[0][0] == NAME_COLUMN
