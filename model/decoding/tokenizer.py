"""Text to ids, and ids to the tokens of a path; see docs/model.md, Prompt and path tokens.

The published model uses `moondream/starmie-v1`, a `tokenizers` file. The small default model has
its own, made here, with the same reserved ids and the integers 0-960 as single tokens, as the path
format needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from wordmask.model.decoding.path_tokens import MINUS, PATH_SCALE
from wordmask.model.hub.registry import TOKENIZER_FILE

PATH_COMMANDS = ("M", "L", "C", "z", "m", "l", "c", "Z")
PATH_INTEGERS = tuple(str(number) for number in range(PATH_SCALE + 1))
N_RESERVED = 21  # ids 0..20 never stand for text


class PathTokenizer:
    """A tokenizer with the two views that the model needs: expressions as ids, ids as paths."""

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self.fast = fast

    @classmethod
    def from_file(cls, path: str | Path) -> PathTokenizer:
        """Read a tokenizer.json.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"tokenizer {path}: no such file; a model folder needs a {TOKENIZER_FILE}"
            )
        return cls(PreTrainedTokenizerFast(tokenizer_file=str(path)))

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None) -> PathTokenizer:
        """Load a tokenizer of the hub, such as `moondream/starmie-v1`."""
        return cls(PreTrainedTokenizerFast.from_pretrained(name, revision=revision))

    def save(self, path: str | Path) -> None:
        """Write a tokenizer file."""
        self.fast.backend_tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Return the ids of an expression, without any special token."""
        ids: list[int] = self.fast.encode(text, add_special_tokens=False)
        return ids

    def path_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the path tokens that ids stand for; an id that is none gives its own text."""
        return [self._path_token(token) for token in ids]

    def _path_token(self, token: int) -> str:
        text = self.path_token_of.get(token) or self.fast.convert_ids_to_tokens(token)
        return text or f"<{token}>"

    def path_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of path tokens.

        Raises:
            KeyError: no path can hold a token.
        """
        return [self._path_id[token] for token in tokens]

    @cached_property
    def path_token_of(self) -> dict[int, str]:
        """Return the path token of each id that can stand in a path; several may have the same."""
        path_tokens = {*PATH_COMMANDS, MINUS, *PATH_INTEGERS}
        each_id = [[token] for token in range(len(self.fast))]
        texts = self.fast.batch_decode(each_id, clean_up_tokenization_spaces=False)
        found = {}
        for token, text in enumerate(texts):
            stripped = text.strip()
            if token >= N_RESERVED and stripped in path_tokens:
                found[token] = stripped
        return found

    @cached_property
    def _path_id(self) -> dict[str, int]:
        tokens = self.path_token_of
        ids = {text: token for token, text in reversed(tokens.items())}
        # Where a token exists with and without a leading space, the bare one is the path's.
        bare = {text: token for token, text in tokens.items() if self.fast.decode([token]) == text}
        return ids | bare


def build_tokenizer(lines: Iterable[str], size: int = 2_048) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `size` ids that learns pieces of words from lines of text.

    Ids: 0..20 reserved (0 is both BOS and EOS), then 0-960, path commands, bytes, and pieces
    learned by byte pair encoding. Words never seen fall into pieces and at last into bytes, so
    every text has ids and comes back from them, lower-case and without accents.

    Raises:
        ValueError: `size` leaves no room for learned pieces.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = _fixed_pieces(alphabet)
    if size <= len(fixed):
        raise ValueError(
            f"a tokenizer of {size} ids has no room for learned pieces: {len(fixed)} are taken by"
            " numbers, commands and bytes"
        )
    pieces, merges = _learn_pieces(lines, alphabet, len(alphabet) + size)
    distinct = dict.fromkeys([*fixed, *pieces])
    kept = list(distinct)[:size]
    vocabulary = {piece: token for token, piece in enumerate(kept)}
    merges = [(a, b) for a, b in merges if {a, b, a + b} <= vocabulary.keys()]
    tokenizer = _byte_level(models.BPE(vocabulary, merges))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _fixed_pieces(alphabet: list[str]) -> list[str]:
    """Return the pieces that every tokenizer has, each once, in the order of their ids."""
    reserved = [f"<|{number}|>" for number in range(N_RESERVED)]
    pieces = [
        *reserved,
        *PATH_INTEGERS,
        *PATH_COMMANDS,
        MINUS,
        "segment",
        *alphabet,
    ]
    return list(dict.fromkeys(pieces))


def _learn_pieces(
    lines: Iterable[str], alphabet: list[str], size: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return up to `size` pieces in the order in which they were found, and their merges."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    vocabulary: dict[str, int] = model["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [(first, second) for first, second in model["merges"]]
    return pieces, merges


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
