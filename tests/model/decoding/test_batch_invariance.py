"""A row gives the same path whatever else is in its batch.

250 scenes are answered one by one, by sevens, and by thirty-twos.

A sum's last digits depend on the shape of what it is part of, so near a tie another token may win:
those rows are listed with the logits of the two tokens. With `deterministic` there are none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from wordmask.model.decoding.path_tokens import PATH_SCALE
from wordmask.model.decoding.prefill import prefill_prefix
from wordmask.model.decoding.prompt import build_prompt, embed_prompts
from wordmask.model.nn.kv_cache import SharedPrefix
from wordmask.model.nn.text import causal_mask
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.scenes.splits import TEST_SEEDS
from wordmask.model.segmenter import Query, Segmentation, Segmenter

SCENES, BATCHES, ALIKE = 250, (1, 7, 32), 0.998
TIE = 1e-4  # logits are some 10 large, and their last float32 digit is 1e-6
QUESTIONS = SceneDataset("shipped", "test")
Row = tuple[np.ndarray, str]


def scenes(start: int, stop: int) -> list[Row]:
    made = []
    for number in range(start, stop):
        scene = QUESTIONS.scene(TEST_SEEDS.start + 5_000 + number)
        (expression,) = QUESTIONS.expressions(scene, number, 1)
        made.append((scene.image_HW3, expression.text))
    return made


def drawing(**method: bool) -> Segmenter:
    """The default model without its refiner: what it draws is the question."""
    return Segmenter.from_pretrained("demo", device="cpu", refiner_iterations=0, **method)


def by_batches(segmenter: Segmenter, rows: list[Row], size: int) -> Iterator[Segmentation]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield from segmenter.segment_many(
            [image for image, _ in part],
            [Query(image=i, object=text) for i, (_, text) in enumerate(part)],
        )


def drawn(row: Segmentation) -> tuple[tuple[float, ...], str]:
    return row.coarse_bbox, row.coarse_path


def drawn_by_batches(start: int, stop: int, size: int) -> list[tuple[tuple[float, ...], str]]:
    torch.set_num_threads(1)
    return [drawn(row) for row in by_batches(drawing(), scenes(start, stop), size)]


@pytest.mark.timeout(900)  # one or two minutes where nothing else runs
def test_paths_are_the_same_in_batches_of_any_size() -> None:
    halves = ((0, SCENES // 2), (SCENES // 2, SCENES))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        work = [[pool.submit(drawn_by_batches, *half, size) for half in halves] for size in BATCHES]
        one, *others = ([row for half in parts for row in half.result()] for parts in work)
    segmenter, rows = drawing(), scenes(0, SCENES)
    for size, other in zip(BATCHES[1:], others, strict=True):
        alike = tokens = 0
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            ids_a, ids_b = (path_ids(segmenter, path) for _, path in (a, b))
            common = (
                len(ids_a)
                if a == b
                else next(
                    (k for k, (x, y) in enumerate(zip(ids_a, ids_b, strict=False)) if x != y),
                    len(ids_a),
                )
            )
            if a[0] != b[0]:
                common = 0
                print(f"row {i}, alone against by {size}: boxes {a[0]} and {b[0]}")
            elif a != b:
                ours, theirs = logits_of(
                    segmenter, rows[i], a[0], ids_a[:common], (ids_a[common], ids_b[common])
                )
                print(
                    f"row {i}, alone against by {size}: token {common} has logits {ours:.6f} and"
                    f" {theirs:.6f}"
                )
                assert abs(ours - theirs) < TIE, (
                    "only where two tokens are as good as equal may another win"
                )
            tokens, alike = tokens + len(ids_a), alike + common
        print(
            f"alone against by {size}: {alike} of {tokens} tokens alike,"
            f" {sum(a == b for a, b in zip(one, other, strict=True))} rows"
        )
        assert alike >= ALIKE * tokens


@torch.inference_mode()
def logits_of(
    segmenter: Segmenter,
    row: Row,
    box: tuple[float, ...],
    drawn: list[int],
    candidates: tuple[int, int],
) -> list[float]:
    """Logits of two candidates for the token after what was drawn of a row, in one plain pass."""
    model, tokens = segmenter.model.model, segmenter.config.tokens
    ((image_PD, _),) = segmenter.pipeline.encode([(row[0], [(0, Query(object=row[1]))])])
    prompt = embed_prompts(
        [build_prompt(row[1], (), segmenter.tokenizer, tokens)], model.text, model.region
    )[0]
    x, y, w, h = torch.tensor(box)
    box_tokens = [
        model.region.encode_coord(x[None])[None],
        model.region.encode_coord(y[None])[None],
    ]
    box_tokens.append(model.region.encode_size(torch.stack([w, h]))[None])
    prefix = SharedPrefix.build(
        prefill_prefix(model, tokens, image_PD[None]), [0], segmenter.device
    )
    x_TD = torch.cat([prompt, *box_tokens, model.text.embed(torch.tensor(drawn, dtype=torch.long))])
    own = torch.arange(len(x_TD))[None]
    hidden = model.text(
        x_TD[None],
        prefix.length + own,
        causal_mask(own, len(x_TD), 0),
        model.text.new_cache(1, len(x_TD)),
        prefix,
    )
    return model.text.logits(hidden[0, -1])[list(candidates)].tolist()


def path_ids(segmenter: Segmenter, path: str) -> list[int]:
    """Ids of a path's tokens, and the end token."""
    words: list[str] = []
    for word in path.split():
        if word.isalpha():
            words.append(word)
            continue
        number = round(float(word) * PATH_SCALE)
        words += ["-"] * (number < 0) + [str(abs(number))]
    return [*segmenter.tokenizer.path_ids(iter(words)), segmenter.config.tokens.eos_id]


def test_deterministic_paths_are_the_same_in_any_company() -> None:
    segmenter, some = drawing(deterministic=True), scenes(0, 100)
    together = [vars(row) for row in by_batches(segmenter, some, len(some))]
    order = random.Random(0).sample(range(len(some)), len(some))
    for place, row in zip(order, by_batches(segmenter, [some[i] for i in order], 7), strict=True):
        assert vars(row) == together[place]


def test_deterministic_answers_are_the_same_to_the_last_digit() -> None:
    """Masks and scores too."""
    segmenter = Segmenter.from_pretrained("demo", device="cpu", deterministic=True)
    some = scenes(0, 20)
    together = [vars(row) for row in by_batches(segmenter, some, len(some))]
    for size in BATCHES:
        assert [vars(row) for row in by_batches(segmenter, some, size)] == together
