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
    n_images, n_tokens, _ = image_IPD.shape
    length = 1 + n_tokens
    bos_I1 = torch.full((n_images, 1), tokens.bos_id, device=image_IPD.device)
    x_ITD = torch.cat([text.embed(bos_I1), image_IPD], dim=1)
    positions_IT = torch.arange(length, device=image_IPD.device).expand(n_images, -1)
    cache = text.new_cache(n_images, length)
    text(x_ITD, positions_IT, causal_mask(positions_IT, length, length), cache)
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
    padding = whole_blocks(x_NTD.shape[1], device) - x_NTD.shape[1]
    x_NTD = F.pad(x_NTD, (0, 0, 0, padding))
    n_prompts, length, _ = x_NTD.shape
    own_NT = torch.arange(length, device=device).expand(n_prompts, -1)
    cache = model.text.new_cache(n_prompts, length)
    mask = causal_mask(own_NT, length, 0)
    hidden_NTD = model.text(x_NTD, prefix.length + own_NT, mask, cache, prefix)
    last_N = to_device(device, [len(prompt.ids) - 1 for prompt in prompts])
    return cache, hidden_NTD[torch.arange(n_prompts, device=device), last_N]
