"""Words in, masks out: the whole method (paper, abstract; facts, sections 1-8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import rle
from model.engine import Decoded, decode
from model.image_crops import crop_image, normalise
from model.mask_cleanup import clean
from model.mask_trace import scale_path, trace
from model.moondream import MoondreamSegmentation
from model.path_grammar import FreeDecoding, PathGrammar
from model.path_tokens import ParsedPath, parse_path
from model.prompt import QueryError, SpatialRef, build_prompt
from model.rasterize import rasterize
from model.refiner_crops import cut, paste
from model.registry import ModelSource, resolve_model
from model.scores import mask_iou, trust
from model.tokenizer import PathTokenizer
from model.vision import CropFeatures
from model.weights import load_model, load_tokenizer

CROPS_AT_ONCE = 32  # bounds the encoder's memory


@dataclass(frozen=True, kw_only=True)
class Query:
    """One expression about image number `image` of a batch.

    References are points (x, y) or boxes (x_min, y_min, x_max, y_max) in unit of image.
    """

    image: int
    object: str
    spatial_refs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The answer to one query.

    `status` is "mask", or "absent" if the model says that the expression names nothing here. `mask` (H, W) uint8 of 0/1;
    `rle` the same in COCO's compressed form; `bbox` (x, y, w, h) and `area` of it in pixels; `path` its outline in
    pixels. `coarse_path` (unit of box) and `coarse_bbox` (cx, cy, w, h in unit of image) are what the language model
    drew. Scores are None where there is nothing to score. `refined`: the refiner's mask, not the coarse one. `salvaged`:
    the path was malformed and only its whole commands before the problem were used; `path_problem` says what it was.
    `truncated`: the token limit cut it short.
    """

    status: str
    mask: np.ndarray
    rle: dict[str, Any]
    bbox: tuple[int, int, int, int]
    area: int
    path: str
    coarse_path: str
    coarse_bbox: tuple[float, float, float, float]
    predicted_iou: float | None
    path_logprob: float | None
    coarse_refined_iou: float | None
    iteration_stability: float | None
    trust: float | None
    refined: bool
    salvaged: bool
    truncated: bool
    path_problem: str | None
    n_path_tokens: int


@dataclass(frozen=True, kw_only=True)
class _Refined:
    """The refiner's answer on the whole image, and its two scores."""

    mask: np.ndarray
    predicted_iou: float
    stability: float


class Segmenter:
    """A loaded model. `segment` answers one query, `segment_many` a batch that shares images."""

    def __init__(
        self, model: MoondreamSegmentation, tokenizer: PathTokenizer, *, revision: str, refiner_iterations: int | None = None,
        grammar: bool = True,
    ) -> None:  # fmt: skip
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.revision = revision
        self.config = model.config
        self.chooser = PathGrammar(tokenizer, self.config.tokens.eos_id, self.device) if grammar else FreeDecoding()
        self.iterations = self.config.refiner.iterations if refiner_iterations is None else refiner_iterations

    @classmethod
    def from_pretrained(cls, model: str = "demo", *, refiner: str | None = None, revision: str | None = None, device: str | None = None,
                        dtype: str = "float32", refiner_iterations: int | None = None, grammar: bool = True) -> Self:  # fmt: skip
        """Load a model by name: "demo" (ships with the package), a local folder, or a hub repository. See `model.registry`."""
        source: ModelSource = resolve_model(model, refiner=refiner, revision=revision)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if place.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device = {place!r}: PyTorch sees no CUDA device here; use cpu, or install a CUDA build of PyTorch")
        loaded = load_model(source, device=place, dtype=getattr(torch, dtype))
        return cls(loaded, load_tokenizer(source), revision=source.revision, refiner_iterations=refiner_iterations, grammar=grammar)

    @property
    def device(self) -> torch.device:
        return self.model.model.text.wte.device

    def check_query(self, object: str, spatial_refs: Sequence[SpatialRef] = ()) -> None:
        """Raises `model.prompt.QueryError` if this cannot be asked."""
        prompt = build_prompt(object, spatial_refs, self.tokenizer, self.config.tokens)
        most = self.config.max_prompt_tokens
        if len(prompt.ids) > most:
            raise QueryError(
                "query_too_long", f"words and references are {len(prompt.ids)} tokens, more than the limit of {most}; give fewer"
            )

    def segment(self, image: Image.Image | np.ndarray, object: str, spatial_refs: Iterable[SpatialRef] | None = None) -> dict[str, Any]:
        """Segment what `object` names in an RGB image: a PIL image or a uint8 array (H, W, 3), as it is to be seen
        (`PIL.ImageOps.exif_transpose` turns a photograph upright, and compositing removes alpha).

        The result has the keys of the moondream client's `segment`: `path` (outline of the mask, unit of `bbox`) and
        `bbox` (x_min, y_min, x_max, y_max, unit of image; None if absent); and besides `mask`, `rle`, the scores and
        flags of `Segmentation`.
        """
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"image is {pixels.dtype} of shape {pixels.shape}: must be uint8 (height, width, 3), RGB, with pixels in it")
        refs = tuple(tuple(float(v) for v in ref) for ref in spatial_refs or ())
        (found,) = self.segment_many([pixels], [Query(image=0, object=object, spatial_refs=refs)])
        height, width = pixels.shape[:2]
        x, y, w, h = found.bbox
        box = {"x_min": x / width, "y_min": y / height, "x_max": (x + w) / width, "y_max": (y + h) / height}
        return vars(found) | {"path": scale_path(found.path, found.bbox), "bbox": box if found.area else None}

    @torch.inference_mode()
    def segment_many(self, images: Sequence[np.ndarray], queries: Sequence[Query]) -> list[Segmentation]:
        """Answer queries about RGB uint8 images (H, W, 3), in the order of the queries. Each image is encoded once."""
        if not queries:
            return []
        asked = [images[query.image] for query in queries]
        image_tokens = self._encode_images(images)
        drawn = self._draw(image_tokens, queries)
        paths = [parse_path(self.tokenizer.path_tokens(row.ids)) for row in drawn]
        coarse = [_coarse_mask(row, path, image) for row, path, image in zip(drawn, paths, asked, strict=True)]
        refined = self._refine(asked, coarse, drawn)
        return [_assemble(*row) for row in zip(drawn, paths, coarse, refined, strict=True)]

    def _encode_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Image tokens (I, P, D), the crops of all images encoded together."""
        cut = [crop_image(image, self.config.vision) for image in images]
        final, _ = self._encode_crops(np.concatenate([crops.crops_NHWC for crops in cut]))
        return self.model.model.vision.project(final, [crops.tiling for crops in cut])

    def _encode_crops(self, crops_NHWC: np.ndarray) -> CropFeatures:
        vision = self.model.model.vision
        parts = [vision(normalise(part, self.device, self.model.dtype)) for part in _chunks(crops_NHWC, CROPS_AT_ONCE)]
        return CropFeatures(*(torch.cat(features) for features in zip(*parts, strict=True)))

    def _draw(self, image_tokens_IPD: Tensor, queries: Sequence[Query]) -> list[Decoded]:
        tokens = self.config.tokens
        prompts = [build_prompt(query.object, query.spatial_refs, self.tokenizer, tokens) for query in queries]
        return decode(self.model.model, tokens, image_tokens_IPD, prompts, [query.image for query in queries], self.chooser)

    def _refine(self, images: Sequence[np.ndarray], coarse: Sequence[np.ndarray], drawn: Sequence[Decoded]) -> list[_Refined | None]:
        """The refiner's masks, in order; None where there is nothing to refine."""
        answers: list[_Refined | None] = [None] * len(images)
        if self.iterations == 0:
            return answers
        size = self.config.vision.crop_size
        cuts = [cut(image, mask, row.box, size) if mask.any() else None for image, mask, row in zip(images, coarse, drawn, strict=True)]
        wanted = [index for index, crop in enumerate(cuts) if crop is not None]
        for part in _chunks(wanted, CROPS_AT_ONCE):
            crops = [cuts[index] for index in part]
            final, early = self._encode_crops(np.stack([crop.image for crop in crops]))
            masks = torch.from_numpy(np.stack([crop.mask for crop in crops])).to(self.device, self.model.dtype)
            result = self.model.head.iterate(self.model.head.fuse(final, early), masks, self.iterations)
            rows = zip(result.probs.float().cpu().numpy(), result.iou.tolist(), result.stability.tolist(), strict=True)
            for index, crop, (probs, iou, stability) in zip(part, crops, rows, strict=True):
                mask = paste(probs, crop.xyxy, *images[index].shape[:2])
                answers[index] = _Refined(mask=mask, predicted_iou=iou, stability=stability)
        return answers


def _chunks(items: Any, size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _coarse_mask(row: Decoded, path: ParsedPath, image_HW3: np.ndarray) -> np.ndarray:
    height, width = image_HW3.shape[:2]
    if row.absent or not path.path:
        return np.zeros((height, width), np.uint8)
    return rasterize(path.path, row.box, height, width)


def _assemble(row: Decoded, path: ParsedPath, coarse_HW: np.ndarray, refined: _Refined | None) -> Segmentation:
    """Clean, encode, trace and score. An empty refined mask falls back to the coarse one, and says so in `refined`."""
    keep = refined is not None and bool(refined.mask.any())
    mask = clean(refined.mask if keep else coarse_HW)
    agreement = mask_iou(coarse_HW, refined.mask) if refined else None
    predicted = refined.predicted_iou if refined else None
    scores = {"predicted_iou": predicted, "path_logprob": row.path_logprob, "coarse_refined_iou": agreement}
    return Segmentation(
        status="absent" if row.absent else "mask",
        mask=mask, rle=rle.encode(mask), bbox=tuple(cv2.boundingRect(mask)), area=int(np.count_nonzero(mask)), path=trace(mask),
        coarse_path=path.path, coarse_bbox=row.box,
        **scores, iteration_stability=refined.stability if refined else None, trust=trust(**scores),
        refined=keep, salvaged=not (path.well_formed or row.absent), truncated=row.truncated,
        path_problem=None if row.absent else path.problem, n_path_tokens=len(row.ids),
    )  # fmt: skip
