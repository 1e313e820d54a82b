"""Expressions to ids, path tokens there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import MINUS, N_RESERVED, PATH_COMMANDS, PATH_SCALE, PathTokenizer, build_tokenizer

WORDS = ["circle", "red", "second", "left"]
TOKENIZER = PathTokenizer(build_tokenizer(WORDS))
PATH_TOKENS = st.sampled_from([*PATH_COMMANDS, MINUS, *map(str, range(PATH_SCALE + 1))])


@given(st.lists(PATH_TOKENS, max_size=40))
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
    assert TOKENIZER.path_tokens([word, 0, 10**6]) == ["circle", "<|0|>", "<1000000>"]


def test_known_words_are_one_id_each():
    assert len(TOKENIZER.encode("second red circle left")) == 4


@pytest.mark.parametrize("text", ["RED Circle", " red   circle ", "réd cîrcle"])
def test_case_spaces_and_accents_do_not_matter(text):
    assert TOKENIZER.encode(text) == TOKENIZER.encode("red circle")


def test_unknown_words_fall_into_characters_and_never_onto_reserved_ids():
    ids = TOKENIZER.encode("zebra")
    assert len(ids) == 5
    assert all(i >= N_RESERVED for i in ids)


@given(st.text(max_size=30))
def test_any_text_can_be_encoded_without_special_tokens(text):
    reserved = set(range(N_RESERVED)) - {4}  # 4 stands for what has no character of its own
    assert not reserved & set(TOKENIZER.encode(text.replace("<|", "")))


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_text_without_words_has_no_ids(text):
    assert TOKENIZER.encode(text) == []


def test_a_saved_tokenizer_is_the_same(tmp_path):
    TOKENIZER.fast.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = PathTokenizer.from_file(tmp_path / "tokenizer.json")
    assert found.encode("the second red zebra, 12") == TOKENIZER.encode("the second red zebra, 12")
    assert found.path_ids(["M", "0", "960", "z"]) == TOKENIZER.path_ids(["M", "0", "960", "z"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer .*absent\.json: no such file; a model folder needs a tokenizer\.json"):
        PathTokenizer.from_file(tmp_path / "absent.json")
