"""Words in, masks out: the whole method (paper, abstract; facts, sections 1-8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wordmask.model.decoding.engine import MAX_BATCH_SIZE, Engine
from wordmask.model.decoding.path_grammar import FreeDecoding, PathGrammar
from wordmask.model.decoding.path_tokens import ParsedPath, parse_path
from wordmask.model.decoding.prompt import Prompt, SpatialRef, build_prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.hub.registry import ModelSource, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.masks import rle
from wordmask.model.masks.cleanup import clean
from wordmask.model.masks.confidence import mask_iou, trust
from wordmask.model.masks.crops import RefinerCrop, cut_crop, paste_mask
from wordmask.model.masks.rasterize import rasterize
from wordmask.model.masks.smooth import smooth_tracer
from wordmask.model.masks.trace import scale_path, trace
from wordmask.model.nn.image_crops import crop_image, normalise
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.vision import CropFeatures
from wordmask.model.runtime.devices import AsyncHostCopy, keep_freed_memory
from wordmask.model.runtime.prefetch import buffered_map
from wordmask.model.types import Query, QueryError, Segmentation

CROPS_AT_ONCE = 32  # bounds the encoder's memory
IMAGES_AHEAD = 16  # cut into crops before they are encoded
SETTLED = 0.001  # share of a refiner crop's pixels
THREADS_BESIDE_CPU, THREADS_BESIDE_GPU = (
    1,
    4,
)  # they cut, fill, paste, clean and trace; on a CPU they take from the model's own

Tag = TypeVar("Tag")
Item = TypeVar("Item")
_Encoded = tuple[Tensor, list[tuple[Any, Prompt]]]


class Segmenter:
    """A loaded model. `segment` answers one query, `segment_many` a batch that shares images."""

    def __init__(
        self,
        model: MoondreamSegmentation,
        tokenizer: PathTokenizer,
        *,
        revision: str,
        refiner_iterations: int | None = None,
        early_stop: bool = True,
        grammar: bool = True,
        deterministic: bool = False,
        path_style: str = "exact",
    ) -> None:
        """
        Args:
            refiner_iterations: refinement steps; 0 keeps the coarse mask, None is the model's own
            number. early_stop: a mask that changes by fewer than `SETTLED` of its crop's pixels in
            a step is refined no further. grammar: decode well-formed paths only; False is the
            published engine's free decoding. deterministic: a row's answer does not depend on what
            is asked beside it, to the last digit. Slower; on a CPU PyTorch's
                threads are reduced to a power of two.
            path_style: "exact" outlines of masks (`mask_trace`), or "smooth" ones (`mask_smooth`).

        Raises:
            ImportError: no library for smooth outlines is installed.
        """
        on_cpu = model.device.type == "cpu"
        if on_cpu and deterministic:
            # Else PyTorch splits tensors among threads within a vector, and what is left over is
            # rounded otherwise.
            torch.set_num_threads(1 << (torch.get_num_threads().bit_length() - 1))
        if on_cpu:
            keep_freed_memory()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.revision = revision
        self.config = model.config
        self.token_selector = (
            PathGrammar(tokenizer, self.config.tokens.eos_id, self.device)
            if grammar
            else FreeDecoding()
        )
        self.iterations = (
            self.config.refiner.iterations if refiner_iterations is None else refiner_iterations
        )
        self.settle = SETTLED if early_stop else 0.0
        self.deterministic = deterministic
        self.trace = smooth_tracer() if path_style == "smooth" else trace
        self._threads = ThreadPoolExecutor(
            THREADS_BESIDE_CPU if on_cpu else THREADS_BESIDE_GPU,
            thread_name_prefix="beside-the-model",
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str = "demo",
        *,
        refiner: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        **method: Any,
    ) -> Self:
        """Load a model by name: "demo" (ships with the package), a local folder, or a hub
        repository. See `model.registry`. `method`: how it is to segment, as in the constructor."""
        source: ModelSource = resolve_model(model, refiner=refiner, revision=revision)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if place.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"device = {place!r}: PyTorch sees no CUDA device here; use cpu, or install a CUDA"
                " build of PyTorch"
            )
        loaded = load_model(source, device=place, dtype=getattr(torch, dtype))
        return cls(loaded, load_tokenizer(source), revision=source.revision, **method)

    @property
    def device(self) -> torch.device:
        return self.model.model.text.wte.device

    def check_query(self, object: str, spatial_refs: Sequence[SpatialRef] = ()) -> None:
        """Raises `model.prompt.QueryError` if this cannot be asked."""
        prompt = build_prompt(object, spatial_refs, self.tokenizer, self.config.tokens)
        most = self.config.max_prompt_tokens
        if len(prompt.ids) > most:
            raise QueryError(
                "query_too_long",
                f"words and references are {len(prompt.ids)} tokens, more than the limit of {most};"
                " give fewer",
            )

    def segment(
        self,
        image: Image.Image | np.ndarray,
        object: str,
        spatial_refs: Iterable[SpatialRef] | None = None,
    ) -> dict[str, Any]:
        """Segment what `object` names in an RGB image: a PIL image or a uint8 array (H, W, 3), as
        it is to be seen (`PIL.ImageOps.exif_transpose` turns a photograph upright, and compositing
        removes alpha).

        The result has the keys of the moondream client's `segment`: `path` (outline of the mask,
        unit of `bbox`) and `bbox` (x_min, y_min, x_max, y_max, unit of image; None if absent); and
        besides `mask`, `rle`, the scores and flags of `Segmentation`.
        """
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 3
            or pixels.shape[2] != 3
            or 0 in pixels.shape
        ):
            raise ValueError(
                f"image is {pixels.dtype} of shape {pixels.shape}: must be uint8 (height, width,"
                " 3), RGB, with pixels in it"
            )
        refs = tuple(tuple(float(v) for v in ref) for ref in spatial_refs or ())
        (found,) = self.segment_many([pixels], [Query(image=0, object=object, spatial_refs=refs)])
        height, width = pixels.shape[:2]
        x, y, w, h = found.bbox
        box = {
            "x_min": x / width,
            "y_min": y / height,
            "x_max": (x + w) / width,
            "y_max": (y + h) / height,
        }
        return vars(found) | {
            "mask": found.mask,
            "path": scale_path(found.path, found.bbox),
            "bbox": box if found.area else None,
        }

    def segment_many(
        self, images: Sequence[np.ndarray], queries: Sequence[Query]
    ) -> list[Segmentation]:
        """Answer queries about RGB uint8 images (H, W, 3), in the order of the queries. Each image
        is encoded once.
        """
        about: dict[int, list[tuple[int, Query]]] = {}
        for number, query in enumerate(queries):
            about.setdefault(query.image, []).append((number, query))
        answers = dict(self.stream((images[image], asked) for image, asked in about.items()))
        return [answers[number].result() for number in range(len(queries))]

    @torch.inference_mode()
    def stream(
        self,
        asked: Iterable[tuple[np.ndarray, Sequence[tuple[Tag, Query]]]],
        rows: int = MAX_BATCH_SIZE,
    ) -> Iterator[tuple[Tag, Future[Segmentation]]]:
        """Answer any number of queries, `rows` decoded at a time, as they are done.

        Each item is an RGB uint8 image (H, W, 3) and the queries about it, each with a tag that
        comes back with its answer. Items are taken a little ahead of their use. What surrounds the
        model is done in threads beside it: an answer is a future, which raises what went wrong with
        its row alone.
        """
        engine = Engine(
            self.model.model,
            self.config.tokens,
            self.token_selector,
            max_batch_size=rows,
            batch_invariant=self.deterministic,
        )
        yield from self._refine(engine.generate(self._encode(asked)))

    def _encode(
        self, asked: Iterable[tuple[np.ndarray, Sequence[tuple[Tag, Query]]]]
    ) -> Iterator[_Encoded]:
        """Image tokens and prompts; a prompt's tag carries the image on. Crops of several images
        are encoded together.
        """
        tokens = self.config.tokens
        cut_up = buffered_map(
            self._threads,
            lambda item: (crop_image(item[0], self.config.vision), *item),
            asked,
            depth=IMAGES_AHEAD,
        )
        for part in _batches(
            cut_up,
            1 if self.deterministic else CROPS_AT_ONCE,
            size=lambda item: len(item[0].crops_NHWC),
        ):
            final, _ = self._encode_crops(
                np.concatenate([crops.crops_NHWC for crops, _, _ in part])
            )
            image_IPD = self.model.model.vision.project(
                final, [crops.tiling for crops, _, _ in part]
            )
            for image_PD, (_, image, queries) in zip(image_IPD, part, strict=True):
                prompts = [
                    build_prompt(query.object, query.spatial_refs, self.tokenizer, tokens)
                    for _, query in queries
                ]
                yield (
                    image_PD,
                    [
                        ((tag, image), prompt)
                        for (tag, _), prompt in zip(queries, prompts, strict=True)
                    ],
                )

    def _encode_crops(self, crops_NHWC: np.ndarray) -> CropFeatures:
        vision = self.model.model.vision
        parts = [
            vision(
                normalise(crops_NHWC[start : start + CROPS_AT_ONCE], self.device, self.model.dtype)
            )
            for start in range(0, len(crops_NHWC), CROPS_AT_ONCE)
        ]
        return CropFeatures(*(torch.cat(features) for features in zip(*parts, strict=True)))

    def _refine(
        self, drawn: Iterable[tuple[tuple[Tag, np.ndarray], Decoded]]
    ) -> Iterator[tuple[Tag, Future[Segmentation]]]:
        """Refined and finished masks. Crops of several rows are refined together."""
        coarse = (
            (tag, self._threads.submit(self._coarse, image, row)) for (tag, image), row in drawn
        )
        for part in _batches(coarse, 1 if self.deterministic else CROPS_AT_ONCE):
            yield from ((tag, future) for tag, future in part if future.exception())
            rows = [(tag, future.result()) for tag, future in part if not future.exception()]
            refined = self._refine_crops([row.crop for _, row in rows if row.crop is not None])
            for tag, row in rows:
                answer = next(refined, None) if row.crop is not None else None
                yield tag, self._threads.submit(self._finish, row, answer)

    def _coarse(self, image_HW3: np.ndarray, row: Decoded) -> _Coarse:
        if not all(map(math.isfinite, (*row.box, row.path_logprob or 0.0))):
            raise FloatingPointError("the model's scores for this row are not finite numbers")
        path = parse_path(self.tokenizer.path_tokens(row.ids))
        height, width = image_HW3.shape[:2]
        if row.absent or not path.path:
            return _Coarse(row, path, np.zeros((height, width), np.uint8), None)
        mask = rasterize(path.path, row.box, height, width)
        return _Coarse(
            row,
            path,
            mask,
            cut_crop(image_HW3, mask, row.box, self.config.vision.crop_size)
            if mask.any()
            else None,
        )

    def _refine_crops(self, crops: Sequence[RefinerCrop]) -> Iterator[_Refined]:
        """The refiner's answers, in order; none with no iterations."""
        if not crops or self.iterations == 0:
            return iter(())
        final, early = self._encode_crops(np.stack([crop.image for crop in crops]))
        masks = torch.from_numpy(np.stack([crop.mask for crop in crops])).to(
            self.device, self.model.dtype, non_blocking=True
        )
        found = self.model.head.iterate(
            self.model.head.fuse(final, early), masks, self.iterations, self.settle
        )
        probs, scores = (
            AsyncHostCopy(found.probs.float()),
            AsyncHostCopy(torch.stack([found.iou, found.stability], dim=1).float()),
        )
        return (_Refined(probs, scores, place) for place in range(len(crops)))

    def _finish(self, coarse: _Coarse, refined: _Refined | None) -> Segmentation:
        """Paste, clean, encode, trace and score. An empty refined mask falls back to the coarse
        one, and says so in `refined`.
        """
        mask, row, path = coarse.mask_HW, coarse.row, coarse.path
        keep, predicted, stability, agreement = False, None, None, None
        if refined is not None and coarse.crop is not None:
            predicted, stability = refined.scores.numpy()[refined.place].tolist()
            pasted = paste_mask(refined.probs.numpy()[refined.place], coarse.crop.xyxy, *mask.shape)
            keep, agreement = bool(pasted.any()), mask_iou(mask, pasted)
            mask = pasted if keep else mask
        mask = clean(mask)
        scores = {
            "predicted_iou": predicted,
            "path_logprob": row.path_logprob,
            "coarse_refined_iou": agreement,
        }
        return Segmentation(
            status="absent" if row.absent else "mask",
            rle=rle.encode(mask),
            bbox=tuple(cv2.boundingRect(mask)),
            area=int(np.count_nonzero(mask)),
            path=self.trace(mask),
            coarse_path=path.path,
            coarse_bbox=row.box,
            **scores,
            iteration_stability=stability,
            trust=trust(**scores),
            refined=keep,
            salvaged=not (path.well_formed or row.absent),
            truncated=row.truncated,
            path_problem=None if row.absent else path.problem,
            n_path_tokens=len(row.ids),
        )


@dataclass(frozen=True)
class _Coarse:
    """What the decoder drew, filled, and cut out for the refiner; no crop where there is nothing to
    refine.
    """

    row: Decoded
    path: ParsedPath
    mask_HW: np.ndarray
    crop: RefinerCrop | None


@dataclass(frozen=True)
class _Refined:
    """One row's place among the refiner's answers to rows refined together, which are on their way
    from the device: `probs` (B, size, size), and `scores` (B, 2), predicted IoU and stability."""

    probs: AsyncHostCopy
    scores: AsyncHostCopy
    place: int


def _batches(
    items: Iterable[Item], most: int, size: Callable[[Item], int] = lambda _: 1
) -> Iterator[list[Item]]:
    """Items in lists whose sizes add up to `most`, or just more."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
