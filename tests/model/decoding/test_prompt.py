"""The prompt of `segment`, token by token, and what cannot be asked."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.tiny import tiny_model
from wordmask.model.decoding.prompt import Prompt, build_prompt, embed_prompts
from wordmask.model.decoding.tokenizer import PathTokenizer, build_tokenizer
from wordmask.model.nn.config import TokenConfig
from wordmask.model.types import QueryError

TOKENIZER = PathTokenizer(build_tokenizer(["red", "circle"]))
CONFIG = TokenConfig(max_query_tokens=4)
RED, CIRCLE = TOKENIZER.encode("red circle")


def build(query: str = "red circle", refs=()) -> Prompt:
    return build_prompt(query, refs, TOKENIZER, CONFIG)


def test_an_expression_stands_between_prefix_and_suffix():
    assert build() == Prompt(ids=(1, 17374, 2, RED, CIRCLE, 3), regions=())


def test_a_point_is_two_coordinates():
    prompt = build(refs=[(0.25, 0.75)])
    assert prompt.ids == (1, 17374, 2, 5, 5, RED, CIRCLE, 3)
    assert prompt.regions == ((3, (0.25,)), (4, (0.75,)))


def test_a_box_is_its_centre_and_its_size():
    prompt = build(refs=[(0.125, 0.25, 0.375, 1.0)])
    assert prompt.ids == (1, 17374, 2, 5, 5, 6, RED, CIRCLE, 3)
    assert prompt.regions == ((3, (0.25,)), (4, (0.625,)), (5, (0.25, 0.75)))


def test_references_keep_their_order():
    prompt = build("red", [(0.5, 0.5), (0.0, 0.0, 1.0, 1.0), (1, 0)])
    assert prompt.ids == (1, 17374, 2, 5, 5, 5, 5, 6, 5, 5, RED, 3)
    assert [position for position, _ in prompt.regions] == [3, 4, 5, 6, 7, 8, 9]
    assert prompt.regions[-2:] == ((8, (1.0,)), (9, (0.0,)))


def test_ids_are_those_of_the_configuration():
    config = TokenConfig(coord_id=8, size_id=9, prompt_prefix=(7,), prompt_suffix=(6, 6))
    assert build_prompt("red", [(0, 0, 1, 1)], TOKENIZER, config).ids == (7, 8, 8, 9, RED, 6, 6)


def test_space_around_an_expression_does_not_matter():
    assert build("  red circle\n") == build()


@pytest.mark.parametrize(
    ("query", "refs", "code", "detail"),
    [
        ("", (), "empty_query", "query = '': has no words"),
        (" \n ", (), "empty_query", "has no words; say what to segment"),
        (
            "red circle red circle red",
            (),
            "query_too_long",
            "query has 5 tokens, more than the limit of 4; shorten it",
        ),
        (
            "red",
            [(0.5, 1.2)],
            "spatial_ref_out_of_range",
            r"\[0\.5, 1\.2\]: each number must be in 0\.\.1",
        ),
        ("red", [(-0.1, 0.2)], "spatial_ref_out_of_range", r"each number must be in 0\.\.1"),
        ("red", [(math.nan, 0.2)], "spatial_ref_out_of_range", r"each number must be in 0\.\.1"),
        ("red", [(0.1, math.inf)], "spatial_ref_out_of_range", r"each number must be in 0\.\.1"),
        ("red", [(0.5, 0.1, 0.4, 0.9)], "spatial_ref_out_of_range", "x_max must exceed x_min"),
        ("red", [(0.1, 0.4, 0.9, 0.4)], "spatial_ref_out_of_range", "y_max must exceed y_min"),
        ("red", [(0.1, 0.4), (0.1, 0.4, 0.9)], "bad_spatial_ref", "a reference has 2 numbers"),
        ("red", [()], "bad_spatial_ref", "a reference has 2 numbers"),
    ],
)
def test_what_cannot_be_asked_has_a_code_and_a_detail(query, refs, code, detail):
    with pytest.raises(QueryError, match=detail) as error:
        build(query, refs)
    assert error.value.code == code
    assert error.value.detail == str(error.value)


def test_the_longest_query_and_the_borders_of_the_image_can_be_asked():
    assert len(build("red circle red circle", [(0.0, 1.0), (0, 0, 1, 1)]).ids) == 3 + 2 + 3 + 4 + 1


@torch.no_grad()
def test_regions_take_the_place_of_their_tokens_embeddings():
    model = tiny_model().model
    prompt = Prompt(ids=(1, 5, 5, 6, 30, 3), regions=((1, (0.25,)), (2, (0.5,)), (3, (0.25, 0.75))))
    found = embed_prompts([prompt], model.text, model.region)[0]
    words = model.text.embed(torch.tensor([1, 30, 3]))
    assert torch.equal(found[[0, 4, 5]], words)
    assert torch.equal(found[1], model.region.encode_coord(torch.tensor([0.25])))
    assert torch.equal(found[2], model.region.encode_coord(torch.tensor([0.5])))
    assert torch.equal(found[3], model.region.encode_size(torch.tensor([0.25, 0.75])))
    assert not torch.equal(found[1], model.text.embed(torch.tensor(5)))


@torch.no_grad()
def test_embedding_a_prompt_leaves_the_vocabulary_alone():
    model = tiny_model().model
    before = model.text.wte.clone()
    embed_prompts([Prompt(ids=(5,), regions=((0, (0.25,)),))], model.text, model.region)[0]
    assert torch.equal(model.text.wte, before)


def test_embeddings_follow_the_models_dtype():
    model = tiny_model().to(torch.bfloat16).model
    found = embed_prompts([Prompt(ids=(5, 7), regions=((0, (0.25,)),))], model.text, model.region)[
        0
    ]
    assert found.dtype == torch.bfloat16
