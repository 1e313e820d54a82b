"""Words in, masks out: the whole method, from the paper's abstract to a mask with its scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image

from wordmask.model.decoding.engine import MAX_BATCH_SIZE
from wordmask.model.decoding.path_grammar import FreeDecoding, PathGrammar
from wordmask.model.decoding.prompt import SpatialRef, build_prompt
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.hub.registry import resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.masks.cleanup import clean
from wordmask.model.masks.smooth import smooth_tracer
from wordmask.model.masks.trace import scale_path, trace
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.pipeline import ImageQueries, Pipeline
from wordmask.model.runtime.devices import (
    check_deterministic_threads,
    resolve_device,
    set_up_process,
)
from wordmask.model.stages import (
    ModelStages,
    choose_mask,
    paste_refined,
    rasterize_coarse,
    score,
    to_segmentation,
)
from wordmask.model.types import Query, QueryError, Segmentation
from wordmask.schemas.rejects import RejectCode

SETTLED = 0.001  # share of a refiner crop's pixels
# They cut, fill, paste, clean and trace; on a CPU they take from the model's own.
THREADS_BESIDE_CPU, THREADS_BESIDE_GPU = 1, 4

Tag = TypeVar("Tag")


class Segmenter:
    """A loaded model that segments what words name.

    `segment` and `segment_one` answer one query, `segment_many` and `stream` many at once.
    """

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
        """Settle how the model segments.

        Args:
            model: vision-language model and refiner, on their device.
            tokenizer: of expressions and paths.
            revision: names the model's files.
            refiner_iterations: refinement steps; 0 keeps the coarse mask, None is the model's own
                number.
            early_stop: a mask that changes by fewer than `SETTLED` of its crop's pixels in a step
                is refined no further.
            grammar: decode well-formed paths only; False is the published engine's free decoding.
            deterministic: a row's answer does not depend on what is asked beside it, to the last
                digit. Slower. On a CPU it takes a power of two of PyTorch's threads, see
                `devices.set_up_process`.
            path_style: "exact" outlines of masks (`masks.trace`), or "smooth" (`masks.smooth`).

        Raises:
            ImportError: no library for smooth outlines is installed.
            ValueError: deterministic, and PyTorch's threads are not a power of two.
        """
        on_cpu = model.device.type == "cpu"
        if deterministic and on_cpu:
            check_deterministic_threads()
        if refiner_iterations is None:
            refiner_iterations = model.config.refiner.iterations
        token_selector: PathGrammar | FreeDecoding = FreeDecoding()
        if grammar:
            eos_id = model.config.tokens.eos_id
            token_selector = PathGrammar(tokenizer, eos_id, model.model.text.wte.device)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.revision = revision
        self.config = model.config
        self.trace = smooth_tracer() if path_style == "smooth" else trace
        self.stages = ModelStages(
            model=self.model,
            tokenizer=tokenizer,
            token_selector=token_selector,
            refiner_iterations=refiner_iterations,
            settle=SETTLED if early_stop else 0.0,
            batch_invariant=deterministic,
        )
        n_threads = THREADS_BESIDE_CPU if on_cpu else THREADS_BESIDE_GPU
        self.pipeline = Pipeline(self.stages, self.trace, n_threads)

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
        """Load a model by name, and prepare this process for it (`devices.set_up_process`).

        Args:
            model: "demo" (ships with the package), a local folder, or a hub repository; see
                `model.hub.registry`.
            refiner: where the refiner comes from, if not with the model.
            revision: of a hub repository.
            device: None is a GPU if there is one, else the CPU.
            dtype: name of the weights' type.
            method: how the model segments, as in the constructor.
        """
        source = resolve_model(model, refiner=refiner, revision=revision)
        set_up_process(device, deterministic=bool(method.get("deterministic")))
        loaded = load_model(source, device=resolve_device(device), dtype=getattr(torch, dtype))
        return cls(loaded, load_tokenizer(source), revision=source.revision, **method)

    def with_method(self, **method: Any) -> Self:
        """Return a segmenter that shares the weights.

        Args:
            method: how it segments, as in the constructor.
        """
        set_up_process(self.device.type, deterministic=bool(method.get("deterministic")))
        return type(self)(self.model, self.tokenizer, revision=self.revision, **method)

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.stages.device

    @torch.inference_mode()
    def segment_one(self, image_HW3: np.ndarray, query: Query) -> Segmentation:
        """Answer one query about an RGB uint8 image (H, W, 3): the method from top to bottom.

        `stream` runs the same stages for many queries at once, with the same answers.
        """
        stages = self.stages

        # Encode: the image and overlapping tiles of it become image tokens.
        (image_PD,) = stages.encode([stages.crop(image_HW3)])

        # Prompt: words and spatial references become the tokens that follow the image.
        prompt = stages.prompt(query)

        # Decode: the language model writes a box and, in the box, a path; or that there is nothing.
        ((_, decoded),) = stages.decode([(image_PD, [(None, prompt)])])
        path = stages.parse(decoded)

        # Rasterise: the path is filled. That is the coarse mask.
        coarse_HW = rasterize_coarse(decoded, path, image_HW3)

        # Refine: the refiner head mends the mask on a crop around the box, several times over.
        crop = stages.crop_for_refiner(image_HW3, coarse_HW, decoded)
        (refined,) = stages.refine([crop])
        refined_HW = paste_refined(refined, coarse_HW)

        # Clean: holes and islands go. An empty refined mask falls back to the coarse one.
        mask_HW, is_refined = choose_mask(coarse_HW, refined_HW)
        mask_HW = clean(mask_HW)

        # Trace: the outline of the mask as a path.
        outline = self.trace(mask_HW)

        # Score: by the model's own probabilities and by how far the two masks agree.
        scores = score(decoded, coarse_HW, refined_HW, refined)
        return to_segmentation(decoded, path, mask_HW, outline, scores, is_refined=is_refined)

    def check_query(self, object: str, spatial_refs: Sequence[SpatialRef] = ()) -> None:
        """Check that a query can be asked.

        Raises:
            QueryError: it cannot; the error says why.
        """
        prompt = build_prompt(object, spatial_refs, self.tokenizer, self.config.tokens)
        limit = self.config.max_prompt_tokens
        if len(prompt.ids) > limit:
            raise QueryError(
                RejectCode.QUERY_TOO_LONG,
                f"words and references are {len(prompt.ids)} tokens, more than the limit of"
                f" {limit}; give fewer",
            )

    def segment(
        self,
        image: Image.Image | np.ndarray,
        object: str,
        spatial_refs: Iterable[SpatialRef] | None = None,
    ) -> dict[str, Any]:
        """Segment what `object` names in an image.

        Args:
            image: RGB, a PIL image or a uint8 array (H, W, 3), as it is to be seen
                (`PIL.ImageOps.exif_transpose` turns a photograph upright, and compositing removes
                alpha).
            object: the expression.
            spatial_refs: points (x, y) and boxes (x_min, y_min, x_max, y_max) in unit of image.

        Returns:
            The keys of the moondream client's `segment`: `path` (outline of the mask, unit of
            `bbox`) and `bbox` (x_min, y_min, x_max, y_max in unit of image; None if absent); and
            `mask`, `rle`, the scores and flags of `Segmentation`.
        """
        image_HW3 = _rgb_array(image)
        refs = tuple(tuple(float(value) for value in ref) for ref in spatial_refs or ())
        found = self.segment_one(image_HW3, Query(object=object, spatial_refs=refs))
        result = vars(found) | {"mask": found.mask, "bbox": None}
        result["path"] = scale_path(found.path, found.bbox)
        if found.area:
            result["bbox"] = _box_in_unit(found.bbox, *image_HW3.shape[:2])
        return result

    def segment_many(
        self, images: Sequence[np.ndarray], queries: Sequence[Query]
    ) -> list[Segmentation]:
        """Answer queries about RGB uint8 images (H, W, 3), in the order of the queries.

        Each image is encoded once.
        """
        by_image: dict[int, list[tuple[int, Query]]] = {}
        for number, query in enumerate(queries):
            by_image.setdefault(query.image, []).append((number, query))
        items = ((images[index], asked) for index, asked in by_image.items())
        answers = dict(self.stream(items))
        return [answers[number].result() for number in range(len(queries))]

    @torch.inference_mode()
    def stream(
        self, images: Iterable[ImageQueries[Tag]], rows: int = MAX_BATCH_SIZE
    ) -> Iterator[tuple[Tag, Future[Segmentation]]]:
        """Answer any number of queries, `rows` decoded at a time, as they are done.

        Args:
            images: each item is an RGB uint8 image (H, W, 3) and the queries about it, each with a
                tag. Items are taken a little ahead of their use.
            rows: most queries that are decoded at a time.

        Yields:
            Tag and answer of each query. An answer is a future: threads beside the model finish it.
            It raises what went wrong with its row alone.
        """
        yield from self.pipeline.run(images, rows)


def _rgb_array(image: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    is_rgb = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    if not is_rgb or 0 in pixels.shape:
        raise ValueError(
            f"image is {pixels.dtype} of shape {pixels.shape}: must be uint8 (height, width, 3),"
            " RGB, with pixels in it"
        )
    return pixels


def _box_in_unit(bbox: tuple[int, int, int, int], height: int, width: int) -> dict[str, float]:
    x, y, w, h = bbox
    return {
        "x_min": x / width,
        "y_min": y / height,
        "x_max": (x + w) / width,
        "y_max": (y + h) / height,
    }
