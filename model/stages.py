"""The stages of the method, each over as many images or rows as it is given at once.

`segmenter` shows them in their order for one query; `pipeline` runs them for many queries. Both
call the functions of this module, so their answers are the same.

Shapes: I images, P image tokens, D decoder width, N crops, S side of a crop, B rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from wordmask.model.decoding.engine import MAX_BATCH_SIZE, Engine
from wordmask.model.decoding.path_grammar import FreeDecoding, PathGrammar
from wordmask.model.decoding.path_tokens import ParsedPath, parse_path
from wordmask.model.decoding.prompt import Prompt, build_prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.masks import rle
from wordmask.model.masks.confidence import mask_iou, trust
from wordmask.model.masks.crops import RefinerCrop, cut_crop, paste_mask
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.nn.image_crops import ImageCrops, crop_image, normalise
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.vision import CropFeatures
from wordmask.model.runtime.devices import AsyncHostCopy
from wordmask.model.types import Query, Segmentation

CROPS_AT_ONCE = 32  # bounds the encoder's memory

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class RefinedCrop:
    """The refiner's answer for one row, on its way from the device with those of other rows.

    Args:
        probs: (B, S, S) probabilities of the rows that were refined together.
        scores: (B, 2) their predicted IoU and stability.
        index: of this row among them.
        xyxy: the crop in pixels of the image.
    """

    probs: AsyncHostCopy
    scores: AsyncHostCopy
    index: int
    xyxy: tuple[int, int, int, int]

    def paste(self, height: int, width: int) -> np.ndarray:
        """Return the mask (height, width) of 0/1 in the whole image."""
        return paste_mask(self.probs.numpy()[self.index], self.xyxy, height, width)

    def iou_and_stability(self) -> tuple[float, float]:
        """Return the predicted IoU, and the IoU of the last two iterations."""
        iou, stability = self.scores.numpy()[self.index].tolist()
        return iou, stability


@dataclass(frozen=True, kw_only=True)
class ModelStages:
    """The stages that the model computes, and how it is to compute them.

    Args:
        model: vision-language model and refiner, on their device.
        tokenizer: of expressions and paths.
        token_selector: which path tokens the decoder may write.
        refiner_iterations: refinement steps; 0 is none.
        settle: share of a crop's pixels; a mask that changes by fewer is refined no further.
        batch_invariant: a row's answer depends on nothing but the row, to the last digit.
    """

    model: MoondreamSegmentation
    tokenizer: PathTokenizer
    token_selector: PathGrammar | FreeDecoding
    refiner_iterations: int
    settle: float
    batch_invariant: bool

    @property
    def crops_at_once(self) -> int:
        """Return how many crops are waited for before they are encoded or refined together."""
        if self.batch_invariant:
            return 1
        return CROPS_AT_ONCE

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.model.model.text.wte.device

    def crop(self, image_HW3: np.ndarray) -> ImageCrops:
        """Cut an RGB uint8 image into the encoder's crops."""
        return crop_image(image_HW3, self.model.config.vision)

    def encode(self, images: Sequence[ImageCrops]) -> Tensor:
        """Return the image tokens (I, P, D) of images."""
        final, _ = self.encode_crops(np.concatenate([image.crops_NHWC for image in images]))
        return self.model.model.vision.project(final, [image.tiling for image in images])

    def encode_crops(self, crops_NHWC: np.ndarray) -> CropFeatures:
        """Return the features of uint8 crops, `CROPS_AT_ONCE` at a time."""
        vision = self.model.model.vision
        parts: list[CropFeatures] = []
        for start in range(0, len(crops_NHWC), CROPS_AT_ONCE):
            part_NHWC = crops_NHWC[start : start + CROPS_AT_ONCE]
            parts.append(vision(normalise(part_NHWC, self.device, self.model.dtype)))
        final_NPD = torch.cat([part.final for part in parts])
        early_NPD = torch.cat([part.early for part in parts])
        return CropFeatures(final_NPD, early_NPD)

    def prompt(self, query: Query) -> Prompt:
        """Return the prompt of a query."""
        tokens = self.model.config.tokens
        return build_prompt(query.object, query.spatial_refs, self.tokenizer, tokens)

    def decode(
        self,
        images: Iterable[tuple[Tensor, Sequence[tuple[Tag, Prompt]]]],
        max_batch_size: int = MAX_BATCH_SIZE,
    ) -> Iterator[tuple[Tag, Decoded]]:
        """Write the box and the path of each prompt, see `Engine.generate`."""
        engine = Engine(
            self.model.model,
            self.model.config.tokens,
            self.token_selector,
            max_batch_size=max_batch_size,
            batch_invariant=self.batch_invariant,
        )
        return engine.generate(images)

    def parse(self, decoded: Decoded) -> ParsedPath:
        """Return the path that the decoder wrote, its whole commands if it is malformed.

        Raises:
            FloatingPointError: the box or the path's probability is not a finite number.
        """
        numbers = (*decoded.box, decoded.path_logprob or 0.0)
        if not all(map(isfinite, numbers)):
            raise FloatingPointError("the model's scores for this row are not finite numbers")
        return parse_path(self.tokenizer.path_tokens(decoded.ids))

    def crop_for_refiner(
        self, image_HW3: np.ndarray, coarse_HW: np.ndarray, decoded: Decoded
    ) -> RefinerCrop | None:
        """Cut image and mask around the box; None where there is nothing to refine."""
        if not coarse_HW.any():
            return None
        return cut_crop(
            image_HW3, coarse_HW, decoded.clipped_box, self.model.config.vision.crop_size
        )

    def refine(self, crops: Sequence[RefinerCrop | None]) -> list[RefinedCrop | None]:
        """Refine the masks of crops, in their order.

        The answer is None for a row without a crop, and for all if there are no iterations.
        """
        to_refine = [crop for crop in crops if crop is not None]
        if not to_refine or self.refiner_iterations == 0:
            return [None] * len(crops)
        refined = iter(self._refine(to_refine))
        answers: list[RefinedCrop | None] = [None] * len(crops)
        for index, crop in enumerate(crops):
            if crop is not None:
                answers[index] = next(refined)
        return answers

    def _refine(self, crops: Sequence[RefinerCrop]) -> list[RefinedCrop]:
        final, early = self.encode_crops(np.stack([crop.image for crop in crops]))
        host_masks_BSS = torch.from_numpy(np.stack([crop.mask for crop in crops]))
        masks_BSS = host_masks_BSS.to(self.device, self.model.dtype, non_blocking=True)
        head = self.model.head
        found = head.iterate(
            head.fuse(final, early), masks_BSS, self.refiner_iterations, self.settle
        )
        probs = AsyncHostCopy(found.probs.float())
        scores = AsyncHostCopy(torch.stack([found.iou, found.stability], dim=1).float())
        return [RefinedCrop(probs, scores, index, crop.xyxy) for index, crop in enumerate(crops)]


def rasterize_coarse(decoded: Decoded, path: ParsedPath, image_HW3: np.ndarray) -> np.ndarray:
    """Fill the decoder's path: uint8 (H, W) of 0/1, empty where nothing is drawn."""
    height, width = image_HW3.shape[:2]
    if decoded.absent or not path.path:
        return np.zeros((height, width), np.uint8)
    return rasterize(path.path, decoded.clipped_box, height, width)


def paste_refined(refined: RefinedCrop | None, coarse_HW: np.ndarray) -> np.ndarray | None:
    """Return the refined mask in an image like the coarse mask's; None if nothing was refined."""
    if refined is None:
        return None
    height, width = coarse_HW.shape
    return refined.paste(height, width)


def choose_mask(coarse_HW: np.ndarray, refined_HW: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Return the refined mask, or the coarse one where that is empty; and whether it is refined."""
    if refined_HW is None or not refined_HW.any():
        return coarse_HW, False
    return refined_HW, True


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Confidence in one mask, see docs/model.md, Scores. None where there is nothing to score."""

    predicted_iou: float | None
    path_logprob: float | None
    coarse_refined_iou: float | None
    iteration_stability: float | None
    trust: float | None


def score(
    decoded: Decoded,
    coarse_HW: np.ndarray,
    refined_HW: np.ndarray | None,
    refined: RefinedCrop | None,
) -> Scores:
    """Return the scores of a row; those of the refiner also where its mask was not used."""
    predicted_iou, stability, agreement = None, None, None
    if refined is not None and refined_HW is not None:
        predicted_iou, stability = refined.iou_and_stability()
        agreement = mask_iou(coarse_HW, refined_HW)
    return Scores(
        predicted_iou=predicted_iou,
        path_logprob=decoded.path_logprob,
        coarse_refined_iou=agreement,
        iteration_stability=stability,
        trust=trust(
            predicted_iou=predicted_iou,
            path_logprob=decoded.path_logprob,
            coarse_refined_iou=agreement,
        ),
    )


def to_segmentation(
    decoded: Decoded,
    path: ParsedPath,
    mask_HW: np.ndarray,
    outline: str,
    scores: Scores,
    *,
    is_refined: bool,
) -> Segmentation:
    """Return the answer to a query from the results of the stages."""
    x, y, w, h = cv2.boundingRect(mask_HW)
    return Segmentation(
        status="absent" if decoded.absent else "mask",
        rle=rle.encode(mask_HW),
        bbox=(x, y, w, h),
        area=int(np.count_nonzero(mask_HW)),
        path=outline,
        coarse_path=path.path,
        coarse_bbox=decoded.clipped_box,
        predicted_iou=scores.predicted_iou,
        path_logprob=scores.path_logprob,
        coarse_refined_iou=scores.coarse_refined_iou,
        iteration_stability=scores.iteration_stability,
        trust=scores.trust,
        refined=is_refined,
        salvaged=not (path.well_formed or decoded.absent),
        truncated=decoded.truncated,
        path_problem=None if decoded.absent else path.problem,
        n_path_tokens=len(decoded.ids),
    )
