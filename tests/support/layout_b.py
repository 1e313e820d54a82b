"""Checkpoints in layout B, written from our names apart from `model.hub.checkpoints`."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = {
    "attn.qkv": "mixer.Wqkv",
    "attn.proj": "mixer.out_proj",
    "attn.tau.wq": "tau_wq",
    "attn.tau.wv": "tau_wv",
    "attn.tau.alpha": "tau_alpha",
    "mlp.router": "gate",
}
WHOLE = {
    "model.text.wte": "text_model.transformer.embd.wte.weight",
    "model.text.post_ln": "text_model.lm_head.ln",
    "model.text.lm_head": "text_model.lm_head.linear",
    "model.vision.patch_emb": "vision_encoder.encoder.model.visual.patch_embed.linear",
    "model.vision.pos_emb": "vision_encoder.encoder.model.visual.pos_embed",
    "model.vision.post_ln": "vision_encoder.encoder.model.visual.norm",
    "model.vision.proj_mlp": "vision_encoder.projection.mlp",
    "model.vision.blocks": "vision_encoder.encoder.model.visual.blocks",
    "model.region.coord_encoder": "region_model.coordinate_encoder",
    "model.region.coord_decoder": "region_model.coordinate_head",
    "model.region.size_encoder": "region_model.size_encoder",
    "model.region.size_decoder": "region_model.size_head",
    "model.region.ln": "region_model.ln",
    "model.region.coord_features": "region_model.coordinate_features.weight",
    "model.region.size_features": "region_model.size_features.weight",
}


def name_in_b(name: str, experts: bool) -> str:
    """Layout B's name for one of ours; `experts` says whether the tensor's block has experts."""
    if name.startswith("model.text.blocks."):
        _, _, _, layer, rest = name.split(".", 4)
        if experts:
            rest = rest.replace("mlp.fc1.weight", "mlp.experts.weight").replace(
                "mlp.fc2.weight", "mlp.output_experts.weight"
            )
        for ours, theirs in BLOCK.items():
            rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
        return f"text_model.transformer.h.{layer}.{rest}"
    ours = max((known for known in WHOLE if name.startswith(known)), key=len)
    theirs = WHOLE[ours] + name.removeprefix(ours)
    if name.startswith("model.vision.blocks."):
        theirs = theirs.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2.")
    return theirs


def to_layout_b(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict, without the refiner's, as layout B holds it."""
    written = {}
    for name, tensor in state.items():
        if name.startswith("model."):
            experts = name.rsplit(".mlp.", 1)[0] + ".mlp.router.weight" in state
            turned = tensor.T if name.endswith("_features") else tensor
            written[name_in_b(name, experts)] = turned.contiguous().clone()
    return written


def fuse_tau(written: dict[str, Tensor]) -> dict[str, Tensor]:
    """tau_wq and tau_wv as one tau_wqwv."""
    fused = {
        name: tensor
        for name, tensor in written.items()
        if not name.endswith((".tau_wq", ".tau_wv"))
    }
    for name in (name for name in written if name.endswith(".tau_wq")):
        fused[name.replace("tau_wq", "tau_wqwv")] = torch.cat(
            [written[name], written[name.replace("tau_wq", "tau_wv")]]
        )
    return fused


def quantise_experts(written: dict[str, Tensor]) -> dict[str, Tensor]:
    """Expert weights as fp8 e4m3 with one scale for each expert and output channel."""
    quantised = dict(written)
    for part, scale_name in (("experts", "up_scale"), ("output_experts", "down_scale")):
        for name in (name for name in written if name.endswith(f".mlp.{part}.weight")):
            scale_EO = written[name].abs().amax(dim=-1) / 448
            quantised[name] = (written[name] / scale_EO[..., None]).to(torch.float8_e4m3fn)
            quantised[name.replace(f"mlp.{part}.weight", f"moe_quant.{scale_name}")] = scale_EO
    return quantised
