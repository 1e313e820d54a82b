"""What the decoder's passes over known answers share: their embeddings and their mask.

Several answers about one image are packed behind one prefix, [start, image, ...]. An answer sees
the prefix and itself.

Shapes: I rows, S positions of a row, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wordmask.model.nn.config import TokenConfig
from wordmask.model.nn.moondream import Moondream

PREFIX = -1  # owner of the positions that all answers of a row see


def embed_answers(
    model: Moondream,
    tokens: TokenConfig,
    ids: Tensor,
    coords: Tensor,
    sizes: Tensor,
    is_answer: Tensor | None = None,
) -> Tensor:
    """Embed tokens (...): coordinates and sizes by their values, all others by their ids.

    Args:
        model: the model whose embeddings are taken.
        tokens: the ids of coordinates and sizes.
        ids: token ids (...).
        coords: values of coordinates (...), unit of image; ignored for other tokens.
        sizes: values of sizes (..., 2), unit of image; ignored for other tokens.
        is_answer: where values are looked at (...); None: everywhere.
    """
    is_coord = ids == tokens.coord_id
    is_size = ids == tokens.size_id
    if is_answer is not None:
        is_coord = is_coord & is_answer
        is_size = is_size & is_answer
    x = model.text.embed(ids)
    coord_codes = model.region.encode_coord(coords[..., None]).to(x.dtype)
    x = torch.where(is_coord[..., None], coord_codes, x)
    size_codes = model.region.encode_size(sizes).to(x.dtype)
    return torch.where(is_size[..., None], size_codes, x)


def packed_mask(owner_IS: Tensor, position_IS: Tensor, image: int) -> Tensor:
    """Return the attention mask (I, 1, S, S) of packed rows.

    A position sees the prefix and its own answer up to itself; the first `image` positions see
    each other.
    """
    query_owner = owner_IS[:, :, None]
    key_owner = owner_IS[:, None, :]
    query_position = position_IS[:, :, None]
    key_position = position_IS[:, None, :]
    both_image = (key_position < image) & (query_position < image)
    is_ordered = (key_position <= query_position) | both_image
    is_visible = (key_owner == PREFIX) | (key_owner == query_owner)
    return (is_visible & is_ordered)[:, None]
