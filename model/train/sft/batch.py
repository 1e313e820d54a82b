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

Arrays = dict[str, np.ndarray]  # by the names of the fields of `SceneBatch`
Box = tuple[float, float, float, float]  # (cx, cy, w, h), unit of image


@dataclass(frozen=True, kw_only=True)
class QuerySample:
    """One query of an image: the tokens of prompt and answer, and its labels."""

    ids: list[int]
    prompt_length: int
    box: Box | None  # None where nothing is meant
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
    arrays = _token_arrays(samples, config)
    phrase_fits = arrays.pop("phrase_fits")
    phrase_share = share_or_first(phrase_fits)
    arrays["phrase_share"] = phrase_share.astype(np.float32)
    arrays |= _image_arrays(samples)
    tilings = [sample.tiling for sample in samples]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return SceneBatch(tilings=tilings, **tensors)


def _image_arrays(samples: Sequence[ImageSample]) -> Arrays:
    """Return the arrays that have no axis of tokens."""
    crops = [sample.crops_NHWC for sample in samples]
    target_shares = [sample.target_share_KP for sample in samples]
    patch_labels = [sample.patch_labels_PC for sample in samples]
    patch_boxes = [sample.patch_box_P4 for sample in samples]
    pointers = []
    names = []
    for sample in samples:
        pointers.append([query.prompt_length - 1 for query in sample.queries])
        names.append([query.name for query in sample.queries])
    return {
        "crops": np.concatenate(crops),
        "pointer": np.array(pointers, np.int64),
        "target_name": np.array(names, np.int64),
        "target_share": np.stack(target_shares).astype(np.float32),
        "patch_labels": np.stack(patch_labels).astype(np.int64),
        "patch_box": np.stack(patch_boxes).astype(np.float32),
    }


def _token_arrays(samples: Sequence[ImageSample], config: MoondreamSegmentationConfig) -> Arrays:
    """Return the arrays of all tokens (I, K, T, ...)."""
    n_queries = len(samples[0].queries)
    lengths = [len(query.ids) for sample in samples for query in sample.queries]
    shape = (len(samples), n_queries, max(lengths))
    arrays = _blank(shape, config.vision.n_tokens)
    for i, sample in enumerate(samples):
        for k, query in enumerate(sample.queries):
            of_query = {name: array[i, k] for name, array in arrays.items()}
            _fill_tokens(of_query, query, config.region)
            _fill_words(of_query, query, sample.patch_labels_PC)
    return arrays


def _blank(shape: tuple[int, int, int], n_patches: int) -> Arrays:
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


def _fill_tokens(arrays: Arrays, query: QuerySample, config: RegionConfig) -> None:
    """Fill in the tokens of a query, their values and the labels of what comes next."""
    start = query.prompt_length
    stop = len(query.ids)
    arrays["ids"][:stop] = query.ids
    arrays["next_id"][start - 1 : stop - 1] = query.ids[start:]
    if query.box is not None:
        _fill_box(arrays, query.box, start, config)


def _fill_box(arrays: Arrays, box: Box, start: int, config: RegionConfig) -> None:
    """Fill in the box of a query, whose answer starts at token `start`."""
    cx, cy, w, h = box
    arrays["coords"][start] = cx
    arrays["coords"][start + 1] = cy
    arrays["sizes"][start + 2] = (w, h)
    n_coord = config.coord_out_dim
    arrays["next_coord"][start - 1] = coord_bin(cx, n_coord)
    arrays["next_coord"][start] = coord_bin(cy, n_coord)
    n_size = config.size_out_dim // 2
    size_bins = [size_bin(side, n_size) for side in (w, h)]
    arrays["next_size"][start + 1] = size_bins


def _fill_words(arrays: Arrays, query: QuerySample, patch_labels_PC: np.ndarray) -> None:
    """Fill in which patches the attribute words of a query fit."""
    for token, labels in query.words.items():
        fits = [patch_labels_PC[:, column] == value for column, value in labels]
        first_column, _ = labels[0]
        arrays["word_fits"][token] = fits[0]
        arrays["phrase_fits"][token] = np.all(fits, axis=0)
        arrays["is_phrase"][token] = first_column == NAME_COLUMN
