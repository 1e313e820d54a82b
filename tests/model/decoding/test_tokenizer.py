"""Expressions to ids, path tokens there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wordmask.model.decoding.tokenizer import (
    MINUS,
    N_RESERVED,
    PATH_COMMANDS,
    PATH_SCALE,
    PathTokenizer,
    build_tokenizer,
)
from wordmask.model.scenes.compose import make_scene
from wordmask.model.scenes.expressions import all_expressions, grammar_lines
from wordmask.model.scenes.nouns import NOUNS
from wordmask.model.scenes.sprites import load_shipped

TOKENIZER = PathTokenizer(build_tokenizer(grammar_lines()))
PATH_TOKENS = st.sampled_from([*PATH_COMMANDS, MINUS, *map(str, range(PATH_SCALE + 1))])


@given(tokens=st.lists(PATH_TOKENS, max_size=40))
def test_path_tokens_come_back_from_their_ids(tokens):
    ids = TOKENIZER.path_ids(tokens)
    assert TOKENIZER.path_tokens(ids) == tokens
    assert all(i >= N_RESERVED for i in ids)


def test_each_path_token_has_an_id_of_its_own():
    tokens = [*PATH_COMMANDS, MINUS, *map(str, range(PATH_SCALE + 1))]
    assert len(set(TOKENIZER.path_ids(tokens))) == len(tokens)


@pytest.mark.parametrize("token", ["961", "A", "1.5", "-1", ""])
def test_what_no_path_holds_has_no_id(token):
    with pytest.raises(KeyError):
        TOKENIZER.path_ids([token])


def test_ids_that_are_no_path_tokens_keep_their_text():
    (word,) = TOKENIZER.encode("circle")
    assert TOKENIZER.path_tokens([word, 0, 10**6]) == ["Ġcircle", "<|0|>", "<1000000>"]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_text_without_words_has_no_ids(text):
    assert TOKENIZER.encode(text) == []


def test_a_saved_tokenizer_is_the_same(tmp_path):
    TOKENIZER.fast.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = PathTokenizer.from_file(tmp_path / "tokenizer.json")
    assert found.encode("the second red zebra, 12") == TOKENIZER.encode("the second red zebra, 12")
    assert found.path_ids(["M", "0", "960", "z"]) == TOKENIZER.path_ids(["M", "0", "960", "z"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"tokenizer .*absent\.json: no such file; a model folder needs a tokenizer\.json",
    ):
        PathTokenizer.from_file(tmp_path / "absent.json")


def test_reserved_ids_numbers_and_commands_come_first():
    assert TOKENIZER.fast.convert_ids_to_tokens(range(N_RESERVED)) == [
        f"<|{i}|>" for i in range(N_RESERVED)
    ]
    assert TOKENIZER.path_ids(map(str, range(PATH_SCALE + 1))) == list(
        range(N_RESERVED, N_RESERVED + PATH_SCALE + 1)
    )
    assert len(TOKENIZER.fast) == 2048


def test_learning_is_deterministic():
    again = build_tokenizer(grammar_lines())
    assert again.backend_tokenizer.to_str() == TOKENIZER.fast.backend_tokenizer.to_str()


@given(st.text(max_size=30))
def test_any_text_comes_back(text):
    """But for case, accents and spaces, and no id is a reserved one."""
    ids = TOKENIZER.encode(text)
    assert all(i >= N_RESERVED for i in ids)
    assert (
        TOKENIZER.fast.decode(ids).strip()
        == TOKENIZER.fast.backend_tokenizer.normalizer.normalize_str(text).strip()
    )


@pytest.mark.parametrize("text", ["RED Circle", " red   circle ", "réd cîrcle", "red\ncircle"])
def test_case_spaces_and_accents_do_not_matter(text):
    assert TOKENIZER.encode(text) == TOKENIZER.encode("red circle")


def test_expressions_are_short_and_made_of_learned_pieces():
    sprites = load_shipped()
    texts = [
        e.text
        for seed in range(10)
        for e in all_expressions(make_scene(seed, sprites=sprites), nouns=sprites.nouns)
    ]
    assert sum(len(TOKENIZER.encode(text)) for text in texts) < 1.35 * sum(
        len(text.split()) for text in texts
    )
    assert sum(len(TOKENIZER.encode(noun)) for noun in NOUNS) < 2.1 * len(NOUNS)
    assert len(TOKENIZER.encode("the leftmost red dog")) == 4
    for text in texts[::50]:
        assert TOKENIZER.fast.decode(TOKENIZER.encode(text)).strip() == text


def test_a_tokenizer_too_small_to_learn_is_refused():
    with pytest.raises(
        ValueError,
        match=r"a tokenizer of 1000 ids has no room for learned pieces: 12\d\d are taken",
    ):
        build_tokenizer(grammar_lines(), size=1000)
