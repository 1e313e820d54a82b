"""The passes that read an image and a prompt, before the steps that write a path.

Shapes: I images, N prompts, P image tokens, T prompt tokens (padded), D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wordmask.model.decoding.prompt import Prompt, embed_prompts
from wordmask.model.nn.config import TokenConfig
from wordmask.model.nn.kv_cache import KVCache, SharedPrefix
from wordmask.model.nn.moondream import Moondream
from wordmask.model.nn.text import causal_mask
from wordmask.model.runtime.devices import to_device, whole_blocks


def prefill_prefix(model: Moondream, tokens: TokenConfig, image_IPD: Tensor) -> KVCache:
    """Return keys and values of BOS and the image tokens, which attend to each other both ways."""
    text = model.text
    device = image_IPD.device
    n_images, n_tokens, _ = image_IPD.shape
    length = 1 + n_tokens
    bos_I1 = torch.full((n_images, 1), tokens.bos_id, device=device)
    bos_I1D = text.embed(bos_I1)
    x_ITD = torch.cat([bos_I1D, image_IPD], dim=1)
    positions_T = torch.arange(length, device=device)
    positions_IT = positions_T.expand(n_images, -1)
    mask = causal_mask(positions_IT, length, length)
    cache = text.new_cache(n_images, length)
    text(x_ITD, positions_IT, mask, cache)
    return cache


def prefill_prompts(
    model: Moondream, prefix: SharedPrefix, prompts: Sequence[Prompt]
) -> tuple[KVCache, Tensor]:
    """Read prompts after their images.

    Prompts are padded at the end, the longest up to whole row blocks. The padding writes keys and
    values that later tokens overwrite before any attends to them.

    Returns:
        The prompts' keys and values, and the residual stream (N, D) at each prompt's last token.
    """
    x_NTD = embed_prompts(prompts, model.text, model.region)
    device = x_NTD.device
    n_prompts, longest, _ = x_NTD.shape
    length = whole_blocks(longest, device)
    x_NTD = F.pad(x_NTD, (0, 0, 0, length - longest))
    own_T = torch.arange(length, device=device)
    own_NT = own_T.expand(n_prompts, -1)
    positions_NT = prefix.length + own_NT
    mask = causal_mask(own_NT, length, 0)
    cache = model.text.new_cache(n_prompts, length)
    hidden_NTD = model.text(x_NTD, positions_NT, mask, cache, prefix)
    last = [len(prompt.ids) - 1 for prompt in prompts]
    last_N = to_device(device, last)
    index_N = torch.arange(n_prompts, device=device)
    return cache, hidden_NTD[index_N, last_N]
