"""The grammar against the parser: it allows what is well formed, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.path_strategies import Command, commands, starts, tokens_of
from tests.support.tiny import draw_all, tiny_model
from wordmask.model.decoding.path_grammar import START, FreeDecoding, PathGrammar
from wordmask.model.decoding.path_tokens import parse_path
from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.config import TokenConfig
from wordmask.model.train.small_model import small_tokenizer

EOS = 0
TOKENIZER = small_tokenizer()
GRAMMAR = PathGrammar(TOKENIZER, EOS, torch.device("cpu"))
VOCABULARY = len(TOKENIZER.fast)
AMPLE = 10**6
quick = settings(derandomize=True, deadline=None, max_examples=60)


def write(seed: int, limit: int, likely_end: float = 0.0) -> tuple[list[int], bool]:
    """Tokens of one path from random logits without the end token, and whether it met the limit."""
    generator = torch.Generator().manual_seed(seed)
    state, ids, forced = torch.tensor([START]), [], False
    while len(ids) < limit:
        logits = torch.randn(1, VOCABULARY, generator=generator)
        logits[:, EOS] += likely_end
        choice = GRAMMAR.choose(logits, state, torch.tensor([limit - len(ids)]))
        state, forced = choice.state, forced or bool(choice.forced)
        ids.append(int(choice.ids))
        if ids[-1] == EOS:
            return ids[:-1], forced
    return ids, True


@pytest.mark.parametrize("limit", [8, 9, 10, 11, 12, 13, 20, 60])
def test_any_logits_give_a_well_formed_path_within_the_limit(limit: int) -> None:
    for seed in range(20):
        ids, forced = write(seed, limit, likely_end=-100.0)
        tokens = TOKENIZER.path_tokens(ids)
        assert len(ids) < limit, "room for the end token"
        assert parse_path(tokens).well_formed, tokens
        assert forced
        assert tokens[-1] in ("z", "Z"), "a limit leads to a closing z"


def test_without_a_limit_in_sight_nothing_is_forced() -> None:
    assert not any(write(seed, 10_000, likely_end=6.0)[1] for seed in range(10))


@given(starts, st.lists(commands, min_size=1, max_size=6))
@quick
def test_every_well_formed_path_can_be_decoded(start: Command, rest: list[Command]) -> None:
    """Well-formed free decodings stay as they are: the grammar allows each of their tokens."""
    tokens = [token for command in (start, *rest) for token in tokens_of(command)]
    state = torch.tensor([START])
    for token in [*TOKENIZER.path_ids(tokens), EOS]:
        if token == EOS and not parse_path(tokens).well_formed:
            return
        logits = torch.zeros(1, VOCABULARY)
        logits[0, token] = 5.0
        choice = GRAMMAR.choose(logits, state, torch.tensor([AMPLE]))
        assert (int(choice.ids), bool(choice.forced)) == (token, False)
        state = choice.state


def test_rows_do_not_mix() -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(1))
    states, left = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([AMPLE, 9, AMPLE, 3, AMPLE])
    together = GRAMMAR.choose(logits, states, left)
    for row in range(5):
        alone = GRAMMAR.choose(logits[row : row + 1], states[row : row + 1], left[row : row + 1])
        assert [int(part) for part in alone] == [int(part[row]) for part in together]


def test_a_limit_too_small_for_any_path_is_not_heeded() -> None:
    assert (
        TOKENIZER.path_tokens(
            [
                int(
                    GRAMMAR.choose(
                        torch.randn(1, VOCABULARY), torch.tensor([START]), torch.tensor([2])
                    ).ids
                )
            ]
        )[0]
        in "Mm"
    )


def test_a_tokenizer_without_commands_is_refused() -> None:
    class Numbers(PathTokenizer):
        path_token_of = {30: "1", 31: "2"}  # noqa: RUF012

    with pytest.raises(ValueError, match="MOVE, LINE, CURVE, CLOSE, MINUS"):
        PathGrammar(Numbers(TOKENIZER.fast), EOS, torch.device("cpu"))


class TinyTokens(PathTokenizer):
    """Of the tiny model's 64 ids."""

    path_token_of = {20: "M", 21: "L", 22: "C", 23: "z", 24: "-"} | {
        25 + n: str(n) for n in range(39)
    }


@pytest.mark.parametrize("limit", [12, 40])
def test_the_engine_decodes_well_formed_paths_whatever_the_weights(limit: int) -> None:
    tokens = TokenConfig(max_new_tokens=limit, prompt_prefix=(1, 9, 2))
    tokenizer = TinyTokens(TOKENIZER.fast)
    grammar = PathGrammar(tokenizer, EOS, torch.device("cpu"))
    prompts = [Prompt(ids=(1, 9, 2, word, 3)) for word in range(30, 42)]
    malformed = 0
    for seed in range(2):
        model = tiny_model(seed)
        with torch.no_grad():
            model.model.text.lm_head.bias[5] += 3.0  # an object is there
        images = torch.randn(1, 25, 32, generator=torch.Generator().manual_seed(seed))
        held, free = (
            draw_all(model, tokens, images, prompts, [0] * 12, chooser)
            for chooser in (grammar, FreeDecoding())
        )
        for row, loose in zip(held, free, strict=True):
            if not row.absent:
                assert parse_path([tokenizer.path_token_of[i] for i in row.ids]).well_formed
            malformed += not parse_path(
                [tokenizer.path_token_of.get(i, "?") for i in loose.ids]
            ).well_formed
    assert malformed, "free decoding would not have done it"
