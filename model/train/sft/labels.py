"""Labels of scenes and expressions: what each object is, which words name it, and where it lies.

Shapes: P image tokens, C classes of an object.
"""

from __future__ import annotations

import re

import numpy as np

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.scenes.canvas import Scene, SceneObject, unit_box
from wordmask.model.scenes.colours import COLOUR_NAMES
from wordmask.model.scenes.compose import SIZE_NAMES
from wordmask.model.scenes.nouns import NOUNS
from wordmask.model.scenes.shapes import SHAPES
from wordmask.model.scenes.templates import SYNONYMS

NAMES = (*NOUNS, *SHAPES)
SIZES = (*SIZE_NAMES, "large")
MAX_RANK = 6  # ordinal labels: how many like objects lie before this one, 0..5
N_RANKS = 3 * 4  # of like name, of like colour, of any kind; left, right, above, below
NAME_COLUMN = 0
COLOUR_COLUMN = 1
SIZE_COLUMN = 2
# Classes of each label column, 0 being background; colours have one more: none.
N_CLASSES = (
    len(NAMES) + 1,
    len(COLOUR_NAMES) + 2,
    len(SIZES) + 1,
    *[MAX_RANK + 1] * N_RANKS,
)

Label = tuple[int, int]  # column and class


def object_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of each object, (objects, C), and boxes (objects, 4) in unit of image.

    Boxes are (cx, cy, w, h). Columns of classes: name, colour, size, then ranks: how many objects
    of the same name, of the same colour, and of any kind lie to the left, to the right, above and
    below (by centre).
    """
    objects = scene.objects
    boxes = [unit_box(o.box, *o.mask_HW.shape) for o in objects]
    box_O4 = np.array(boxes).reshape(-1, 4)
    name = np.array([NAMES.index(o.name) for o in objects], int)
    colour = np.array([_colour_index(o) for o in objects], int)
    size = np.array([SIZES.index(o.size_name) for o in objects], int)
    anything = np.zeros_like(name)
    ranks = _ranks((name, colour, anything), box_O4)
    classes = np.stack([name, colour, size, *ranks], axis=1)
    return classes + 1, box_O4


def _ranks(kinds: tuple[np.ndarray, ...], box_O4: np.ndarray) -> list[np.ndarray]:
    """Return how many objects of the same kind lie before each, by kind and direction."""
    cx = box_O4[:, 0]
    cy = box_O4[:, 1]
    ranks = []
    for kind in kinds:
        is_like = kind[:, None] == kind
        for offset in (cx, -cx, cy, -cy):
            is_before = offset[None, :] < offset[:, None]
            rank = (is_like & is_before).sum(axis=1)
            ranks.append(np.minimum(rank, MAX_RANK - 1))
    return ranks


def _colour_index(thing: SceneObject) -> int:
    if not thing.colour:
        return len(COLOUR_NAMES)
    return COLOUR_NAMES.index(thing.colour)


def share_or_first(covered: np.ndarray) -> np.ndarray:
    """Return of how much of each patch something covers (..., P) the shares (..., 1 + P).

    Shares sum to 1. The first stands for the token that begins the prefix: it has all where no
    patch is covered. What looks there has found nothing.
    """
    nothing = ~covered.any(axis=-1, keepdims=True)
    shares = np.concatenate([nothing, covered], axis=-1)
    return shares / shares.sum(axis=-1, keepdims=True)


def attributes_of(text: str, tokenizer: PathTokenizer) -> dict[int, list[Label]]:
    """Return the labels of each name, colour and size in an expression, by their last token.

    Of a name, those are also the label of the colour right before it. Tokens are counted from the
    expression's first.
    """
    encoded = tokenizer.fast(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    token_ending_at = {stop: index for index, (_, stop) in enumerate(spans)}
    found: dict[int, list[Label]] = {}
    colour_before: tuple[int, Label] | None = None  # where the colour ended, and its label
    for match in _ATTRIBUTE.finditer(text.lower()):
        label = _LABELS[match.group()]
        column, _ = label
        labels = [label]
        if column == NAME_COLUMN and colour_before is not None:
            colour_stop, colour = colour_before
            if colour_stop == match.start() - 1:
                labels.append(colour)
        stop = match.end()
        if stop in token_ending_at:
            token = token_ending_at[stop]
            found[token] = labels
        colour_before = None
        if column == COLOUR_COLUMN:
            colour_before = (stop, label)
    return found


def _labels() -> dict[str, Label]:
    """Return the label of every word for a name, colour or size."""
    labels: dict[str, Label] = {}
    for column, group in enumerate((NAMES, COLOUR_NAMES, SIZES)):
        for value, name in enumerate(group, start=1):
            words = SYNONYMS.get(name, (name,))
            labels |= dict.fromkeys(words, (column, value))
    return labels


_LABELS = _labels()
_LONGEST_FIRST = sorted(_LABELS, key=len, reverse=True)
_ATTRIBUTE = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in _LONGEST_FIRST))
