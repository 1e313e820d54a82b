"""The batched decoder against one row decoded plainly, token by token, with nothing kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny import draw_all, tiny_model
from wordmask.model.decoding.engine import Engine
from wordmask.model.decoding.path_grammar import FreeDecoding
from wordmask.model.decoding.prompt import Prompt, embed_prompts
from wordmask.model.decoding.requests import Decoded
from wordmask.model.nn.config import TokenConfig
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.nn.region import coord_value, size_value
from wordmask.model.nn.text import causal_mask
from wordmask.model.runtime.devices import ROW_BLOCK

FREE = FreeDecoding()
TOKENS = TokenConfig(max_new_tokens=12, prompt_prefix=(1, 9, 2))
PROMPTS = [
    Prompt(ids=(1, 9, 2, 30, 31, 3)),
    Prompt(ids=(1, 9, 2, 40, 3)),
    Prompt(
        ids=(1, 9, 2, 5, 5, 6, 33, 34, 35, 3), regions=((3, (0.2,)), (4, (0.7,)), (5, (0.1, 0.3)))
    ),
    Prompt(ids=(1, 9, 2, 51, 52, 53, 54, 3)),
]


@pytest.fixture(scope="module")
def model() -> MoondreamSegmentation:
    return tiny_model()


@pytest.fixture(scope="module")
def images(model: MoondreamSegmentation) -> Tensor:
    config = model.config
    return torch.randn(
        2, config.vision.n_tokens, config.text.dim, generator=torch.Generator().manual_seed(3)
    )


@torch.inference_mode()
def plainly(model: MoondreamSegmentation, image_PD: Tensor, prompt: Prompt) -> Decoded:
    """The published algorithm: one row, the whole sequence anew for every token."""
    text, region = model.model.text, model.model.region
    n_coord, n_size = region.config.coord_out_dim, region.config.size_out_dim // 2
    x = torch.cat(
        [
            text.embed(torch.tensor([TOKENS.bos_id])),
            image_PD,
            embed_prompts([prompt], text, region)[0],
        ]
    )

    def hidden() -> Tensor:
        positions = torch.arange(len(x))[None]
        return text(
            x[None], positions, causal_mask(positions, len(x), model.config.text.prefix_attn)
        )[0, -1]

    first = text.logits(hidden())
    absent = bool(first[TOKENS.eos_id] > first[TOKENS.coord_id])
    box: list[float] = []
    for _axis in range(2):
        value = coord_value(region.coord_logits(hidden()).argmax(-1), n_coord)
        box.append(value.item())
        x = torch.cat([x, region.encode_coord(value[None])[None]])
    size = size_value(region.size_logits(hidden()).argmax(-1), n_size)
    x = torch.cat([x, region.encode_size(size)[None]])
    ids, logprobs = [], []
    while not absent and len(ids) < TOKENS.max_new_tokens:
        log_p = text.logits(hidden()).log_softmax(-1)
        ids.append(int(log_p.argmax()))
        logprobs.append(float(log_p.max()))
        if ids[-1] == TOKENS.eos_id:
            break
        x = torch.cat([x, text.embed(torch.tensor([ids[-1]]))])
    ended = absent or (bool(ids) and ids[-1] == TOKENS.eos_id)
    path = tuple(ids[:-1] if ended else ids)
    mean = sum(logprobs) / len(logprobs) if logprobs else None
    return Decoded(
        box=(*box, *size.tolist()), ids=path, absent=absent, truncated=not ended, path_logprob=mean
    )


def test_a_batch_gives_what_each_row_alone_gives(
    model: MoondreamSegmentation, images: Tensor
) -> None:
    image_of = [0, 1, 1, 0]
    found = draw_all(model, TOKENS, images, PROMPTS, image_of, FREE)
    for row, prompt, image in zip(found, PROMPTS, image_of, strict=True):
        expected = plainly(model, images[image], prompt)
        assert (row.ids, row.absent, row.truncated) == (
            expected.ids,
            expected.absent,
            expected.truncated,
        )
        assert row.box == pytest.approx(expected.box, abs=1e-6)
        assert row.path_logprob == (
            None
            if expected.path_logprob is None
            else pytest.approx(expected.path_logprob, abs=1e-4)
        )


def test_rows_that_end_early_leave_the_others_as_they_were(
    model: MoondreamSegmentation, images: Tensor
) -> None:
    """The end token is made likely for some rows, so that they finish at different steps."""
    with torch.no_grad():
        model.model.text.lm_head.bias[TOKENS.eos_id] += 3.5
    try:
        prompts, image_of = PROMPTS * 3, [0, 1] * 6
        found = draw_all(model, TOKENS, images, prompts, image_of, FREE)
        assert len({len(row.ids) for row in found}) > 1
        for row, prompt, image in zip(found, prompts, image_of, strict=True):
            assert row.ids == plainly(model, images[image], prompt).ids
    finally:
        with torch.no_grad():
            model.model.text.lm_head.bias[TOKENS.eos_id] -= 3.5


def test_an_end_at_once_is_absent(model: MoondreamSegmentation, images: Tensor) -> None:
    with torch.no_grad():
        model.model.text.lm_head.bias[TOKENS.eos_id] += 100
    try:
        (row,) = draw_all(model, TOKENS, images, PROMPTS[:1], [0], FREE)
        assert (row.absent, row.ids, row.truncated, row.path_logprob) == (True, (), False, None)
    finally:
        with torch.no_grad():
            model.model.text.lm_head.bias[TOKENS.eos_id] -= 100


def test_no_path_tokens_at_all(model: MoondreamSegmentation, images: Tensor) -> None:
    (row,) = draw_all(model, TOKENS, images, PROMPTS[:1], [0], FREE, max_new_tokens=0)
    assert row.ids == ()
    assert row.path_logprob is None


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_batches_of_any_size_give_what_each_row_alone_gives(
    model: MoondreamSegmentation, images: Tensor, rows: int, lag: int
) -> None:
    """Batch rows are used again while their neighbours are at other stages, and grow fewer."""
    with torch.no_grad():
        model.model.text.lm_head.bias[TOKENS.eos_id] += 3.5
    try:
        prompts, image_of = PROMPTS * 16, [0, 0, 1, 1] * 16
        found = draw_all(
            model, TOKENS, images, prompts, image_of, FREE, max_batch_size=rows, lag=lag
        )
        alone = {
            (prompt, image): plainly(model, images[image], prompt)
            for prompt, image in zip(PROMPTS, image_of, strict=False)
        }
        for row, prompt, image in zip(found, prompts, image_of, strict=True):
            expected = alone[prompt, image]
            assert (row.ids, row.absent, row.truncated) == (
                expected.ids,
                expected.absent,
                expected.truncated,
            )
            assert row.box == pytest.approx(expected.box, abs=1e-6)
    finally:
        with torch.no_grad():
            model.model.text.lm_head.bias[TOKENS.eos_id] -= 3.5


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_an_image_of_nan_spoils_no_other_row(
    model: MoondreamSegmentation, images: Tensor, batch_invariant: bool
) -> None:
    spoilt = torch.stack([images[0], torch.full_like(images[0], torch.nan)])
    image_of = [0, 1, 0, 0] * 12
    found = draw_all(
        model,
        TOKENS,
        spoilt,
        PROMPTS * 12,
        image_of,
        FREE,
        max_batch_size=8,
        batch_invariant=batch_invariant,
    )
    alone = {prompt: plainly(model, images[0], prompt).ids for prompt in PROMPTS}
    for row, prompt, image in zip(found, PROMPTS * 12, image_of, strict=True):
        assert image == 1 or row.ids == alone[prompt]


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_prompts_that_need_longer_rows(
    model: MoondreamSegmentation, images: Tensor, batch_invariant: bool
) -> None:
    long = Prompt(ids=(1, 9, 2, *[30 + i % 30 for i in range(60)], 3))
    prompts = [PROMPTS[0], long, PROMPTS[1], long, PROMPTS[2]]
    found = draw_all(
        model,
        TOKENS,
        images,
        prompts,
        [0, 0, 1, 1, 1],
        FREE,
        max_batch_size=2,
        batch_invariant=batch_invariant,
    )
    for row, prompt, image in zip(found, prompts, [0, 0, 1, 1, 1], strict=True):
        assert row.ids == plainly(model, images[image], prompt).ids


def test_batch_invariant_rows_do_not_depend_on_their_neighbours_to_the_last_digit(
    model: MoondreamSegmentation, images: Tensor
) -> None:
    prompts, image_of = PROMPTS * 3, [0, 1] * 6
    together = draw_all(
        model, TOKENS, images, prompts, image_of, FREE, max_batch_size=3, batch_invariant=True
    )
    for row, prompt, image in zip(together, prompts, image_of, strict=True):
        (alone,) = draw_all(
            model,
            TOKENS,
            images[image : image + 1],
            [prompt],
            [0],
            FREE,
            max_batch_size=4,
            batch_invariant=True,
        )
        assert row == alone


def test_images_are_taken_as_rows_come_free_and_prefilled_once(
    model: MoondreamSegmentation, images: Tensor
) -> None:
    taken: list[int] = []
    rows_read: list[int] = []

    def asked() -> Iterator[tuple[Tensor, list[tuple[int, Prompt]]]]:
        for number in range(6):
            taken.append(number)
            yield images[number % 2], [(100 * number + i, PROMPTS[0]) for i in range(queries)]

    queries = ROW_BLOCK * 3 // 4
    engine = Engine(model.model, TOKENS, FREE, max_batch_size=ROW_BLOCK)
    forward = model.model.text.forward

    def counted(x_BTD: Tensor, *args: Any, **options: Any) -> Tensor:
        rows_read.append(x_BTD.shape[0] if x_BTD.shape[1] == model.config.text.prefix_attn else 0)
        return forward(x_BTD, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model.text, "forward", counted)
        found = engine.generate(asked())
        next(found)
        assert taken == [0, 1], "the queries of two images fill the batch"
        tags = [tag for tag, _ in found]
    assert len(tags) == 6 * queries - 1
    assert sum(rows_read) == 6, "each image once, whatever its queries"


def test_no_requests_give_no_results(model: MoondreamSegmentation) -> None:
    assert list(Engine(model.model, TOKENS, FREE).generate([])) == []
