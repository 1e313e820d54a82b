"""The models and the work that benchmarks measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wordmask.model.nn.config import MoondreamSegmentationConfig
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import TEST_SEEDS
from wordmask.model.segmenter import Query, Segmenter

PHOTOGRAPH = (480, 640)  # height, width
MEDIUM = {
    "vision": {
        "enc_dim": 384,
        "enc_n_layers": 9,
        "enc_ff_dim": 1536,
        "enc_n_heads": 6,
        "proj_inner_dim": 1536,
        "proj_out_dim": 768,
        "early_layer": 3,
    },
    "text": {
        "dim": 768,
        "ff_dim": 2304,
        "n_layers": 8,
        "n_heads": 12,
        "n_kv_heads": 12,
        "rotary_dim": 32,
        "max_context": 2048,
        "moe": {
            "num_experts": 32,
            "start_layer": 4,
            "experts_per_token": 8,
            "expert_inner_dim": 320,
        },
    },
    "region": {"dim": 768},
    "refiner": {"enc_dim": 384},
}

SCENES = SceneDataset("shipped", "test")


@dataclass(frozen=True)
class Work:
    """Images and what is asked about each."""

    images: Sequence[np.ndarray]
    words: Sequence[Sequence[str]]

    @property
    def rows(self) -> int:
        return sum(map(len, self.words))

    def asked(self) -> Iterator[tuple[np.ndarray, list[tuple[tuple[int, int], Query]]]]:
        """As `Segmenter.stream` takes it; the tag is (image, number of the expression)."""
        for number, (image, words) in enumerate(zip(self.images, self.words, strict=True)):
            yield image, [((number, place), Query(object=text)) for place, text in enumerate(words)]


def default_model(**method: object) -> Segmenter:
    return Segmenter.from_pretrained("demo", device="cpu", **method)


def medium_model(new_tokens: int = 64, **method: object) -> Segmenter:
    """Some 150 M random parameters over 378 px crops; the default model's tokenizer.

    Random weights draw until the limit.
    """
    small = default_model()
    config = small.config.to_dict()
    tokens = config["tokens"] | {"max_new_tokens": new_tokens}
    text = MEDIUM["text"] | {"vocab_size": config["text"]["vocab_size"]}
    made = MoondreamSegmentationConfig(**(MEDIUM | {"text": text, "tokens": tokens}))
    torch.manual_seed(0)
    return Segmenter(
        MoondreamSegmentation(made).requires_grad_(False),
        small.tokenizer,
        revision="medium",
        early_stop=False,
        **method,
    )


def scenes(images: int, queries: int) -> Work:
    """Scenes of unseen seeds, each with so many expressions.

    Where a scene has fewer, they are repeated.
    """
    drawn = [SCENES.scene(TEST_SEEDS.start + i) for i in range(images)]
    words = [
        [expression.text for expression in SCENES.expressions(scene, i, queries)]
        for i, scene in enumerate(drawn)
    ]
    return Work(
        [scene.image_HW3 for scene in drawn], [(texts * queries)[:queries] for texts in words]
    )


def photographs(images: int, queries: int) -> Work:
    """Noise of a photograph's size: nine crops each."""
    generator = np.random.default_rng(0)
    made = [generator.integers(0, 256, (*PHOTOGRAPH, 3), dtype=np.uint8) for _ in range(images)]
    return Work(
        made,
        [
            [
                f"the {colour} circle"
                for colour in ("red", "blue", "green", "white", "black", "grey", "pink", "brown")[
                    :queries
                ]
            ]
        ]
        * images,
    )
