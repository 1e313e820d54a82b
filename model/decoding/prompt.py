"""The `segment` prompt: the tokens of an expression and its spatial references.

See docs/model.md, Prompt and path tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.nn.config import TokenConfig
from wordmask.model.nn.region import Region
from wordmask.model.nn.text import TextDecoder
from wordmask.model.runtime.devices import to_device
from wordmask.model.types import QueryError
from wordmask.schemas.rejects import RejectCode

SpatialRef = Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The tokens that follow an image.

    Args:
        ids: prefix, references, expression, suffix.
        regions: positions of coordinates (1 value) and sizes (2 values), in unit of image.
    """

    ids: tuple[int, ...]
    regions: tuple[tuple[int, tuple[float, ...]], ...] = ()


def build_prompt(
    query: str, spatial_refs: Sequence[SpatialRef], tokenizer: PathTokenizer, config: TokenConfig
) -> Prompt:
    """Return the prompt of one query.

    A point (x, y) is two coordinate tokens. A box (x_min, y_min, x_max, y_max) is the coordinates
    of its centre and a size token. All are in unit of image.

    Raises:
        QueryError: the expression is empty or too long, or a reference is malformed or outside
            0..1.
    """
    words = tokenizer.encode(query.strip())
    if not words:
        detail = f"query = {query!r}: has no words; say what to segment"
        raise QueryError(RejectCode.EMPTY_QUERY, detail)
    if len(words) > config.max_query_tokens:
        raise QueryError(
            RejectCode.QUERY_TOO_LONG,
            f"query has {len(words)} tokens, more than the limit of {config.max_query_tokens};"
            " shorten it",
        )
    ids: list[int] = list(config.prompt_prefix)
    regions: list[tuple[int, tuple[float, ...]]] = []
    for ref in spatial_refs:
        for token, values in _reference_tokens(tuple(float(v) for v in ref), config):
            regions.append((len(ids), values))
            ids.append(token)
    return Prompt(ids=(*ids, *words, *config.prompt_suffix), regions=tuple(regions))


def _reference_tokens(
    ref: tuple[float, ...], config: TokenConfig
) -> list[tuple[int, tuple[float, ...]]]:
    """Return the tokens of a point or a box, each with its values."""
    if len(ref) not in (2, 4):
        raise QueryError(
            RejectCode.BAD_SPATIAL_REF,
            f"spatial_refs holds {list(ref)}: a reference has 2 numbers (x, y) or 4 (x_min, y_min,"
            " x_max, y_max)",
        )
    if not all(0.0 <= v <= 1.0 for v in ref):  # also false for NaN
        raise QueryError(
            RejectCode.SPATIAL_REF_OUT_OF_RANGE,
            f"spatial_refs holds {list(ref)}: each number must be in 0..1, in unit of the image",
        )
    if len(ref) == 2:
        return [(config.coord_id, (ref[0],)), (config.coord_id, (ref[1],))]
    x0, y0, x1, y1 = ref
    if x1 <= x0 or y1 <= y0:
        raise QueryError(
            RejectCode.SPATIAL_REF_OUT_OF_RANGE,
            f"spatial_refs holds {list(ref)}: x_max must exceed x_min and y_max must exceed y_min",
        )
    centre = [(config.coord_id, ((x0 + x1) / 2,)), (config.coord_id, ((y0 + y1) / 2,))]
    return [*centre, (config.size_id, (x1 - x0, y1 - y0))]


def embed_prompts(prompts: Sequence[Prompt], text: TextDecoder, region: Region) -> Tensor:
    """Return the embeddings (N, T, D) of N prompts, the shorter ones padded at the end.

    Coordinates and sizes have the embeddings of the region encoders, not the tokens' own.
    """
    device = text.wte.device
    longest = max(len(prompt.ids) for prompt in prompts)
    padded = [prompt.ids + (0,) * (longest - len(prompt.ids)) for prompt in prompts]
    x_NTD = text.embed(to_device(device, padded))
    for index, prompt in enumerate(prompts):
        for position, values in prompt.regions:
            value = to_device(device, values)
            if len(values) == 1:
                x_NTD[index, position] = region.encode_coord(value)
            else:
                x_NTD[index, position] = region.encode_size(value)
    return x_NTD
