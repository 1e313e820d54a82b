"""Text to ids, and ids to the tokens of a path.

The published model uses `moondream/starmie-v1`, a `tokenizers` file; the small default model has
its own, made here, with the same reserved ids and the integers 0-960 as single tokens, as the path
format needs (facts, section 5).
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
N_RESERVED = 21  # ids 0..20 never stand for text
UNKNOWN = "<|4|>"


class PathTokenizer:
    """A tokenizer file with the two views the model needs: expressions as ids, ids as path
    tokens.
    """

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self.fast = fast

    @classmethod
    def from_file(cls, path: str | Path) -> PathTokenizer:
        """Raises FileNotFoundError if there is no such tokenizer.json."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"tokenizer {path}: no such file; a model folder needs a {TOKENIZER_FILE}"
            )
        return cls(PreTrainedTokenizerFast(tokenizer_file=str(path)))

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None) -> PathTokenizer:
        """A tokenizer of the hub, such as `moondream/starmie-v1`."""
        return cls(PreTrainedTokenizerFast.from_pretrained(name, revision=revision))

    def save(self, path: str | Path) -> None:
        """Write a tokenizer file."""
        self.fast.backend_tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of an expression, without any special token."""
        return self.fast.encode(text, add_special_tokens=False)

    def path_tokens(self, ids: Sequence[int]) -> list[str]:
        """The path tokens that ids stand for; an id that is no path token gives its own text."""
        return [
            self.path_token_of.get(i) or self.fast.convert_ids_to_tokens(i) or f"<{i}>" for i in ids
        ]

    def path_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of path tokens. Raises KeyError on a token that no path can hold."""
        return [self._path_id[token] for token in tokens]

    @cached_property
    def path_token_of(self) -> dict[int, str]:
        """Every id that can stand in a path, and the path token it stands for; several ids may
        stand for one.
        """
        known = {*PATH_COMMANDS, MINUS, *(str(n) for n in range(PATH_SCALE + 1))}
        decoded = enumerate(
            self.fast.batch_decode(
                [[i] for i in range(len(self.fast))], clean_up_tokenization_spaces=False
            )
        )
        return {i: text.strip() for i, text in decoded if i >= N_RESERVED and text.strip() in known}

    @cached_property
    def _path_id(self) -> dict[str, int]:
        # Where a token exists with and without a leading space, the bare one (decoded without
        # strip) is the path's.
        ids = {token: i for i, token in reversed(self.path_token_of.items())}
        return ids | {
            token: i for i, token in self.path_token_of.items() if self.fast.decode([i]) == token
        }


def build_tokenizer(lines: Iterable[str], size: int = 2_048) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` ids that learns its pieces of words from lines of text, by byte pair
    encoding.

    Ids: 0..20 reserved (0 is both BOS and EOS), then 0-960, path commands, bytes, learned pieces.
    Words never seen fall into pieces and at last into bytes, so every text has ids and comes back
    from them, lower-case and without accents. ValueError where `size` leaves no room for learned
    pieces.
    """
    fixed = [f"<|{i}|>" for i in range(N_RESERVED)]
    fixed += [
        *(str(n) for n in range(PATH_SCALE + 1)),
        *PATH_COMMANDS,
        MINUS,
        "segment",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
    ]
    fixed = list(dict.fromkeys(fixed))
    if size <= len(fixed):
        raise ValueError(
            f"a tokenizer of {size} ids has no room for learned pieces: {len(fixed)} are taken by"
            " numbers, commands and bytes"
        )
    learned, merges = _learn(lines, len(pre_tokenizers.ByteLevel.alphabet()) + size)
    kept = [piece for piece in learned if piece not in set(fixed)][: size - len(fixed)]
    vocabulary = {piece: i for i, piece in enumerate([*fixed, *kept])}
    merges = [(a, b) for a, b in merges if {a, b, a + b} <= vocabulary.keys()]
    tokenizer = _byte_level(models.BPE(vocabulary, merges))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _learn(lines: Iterable[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Up to `size` pieces in the order in which they were found, bytes first, and the merges that
    make them.
    """
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [
        tuple(pair) for pair in model["merges"]
    ]


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), *spaces]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
