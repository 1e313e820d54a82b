"""The refiner head: one pass, every iteration's predicted IoUs, and the last iteration's mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.files import Golden, assert_close, strided
from wordmask.model.nn.config import RefinerConfig
from wordmask.model.nn.refiner import RefinerHead


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden.read(golden_dir / "refiner.safetensors")


@pytest.fixture(scope="module")
def head(golden: Golden) -> RefinerHead:
    grid = golden["head.image_pe"].shape[-1]
    head = RefinerHead(golden.section(RefinerConfig), grid).eval()
    head.load_state_dict(golden.below("head."))
    return head


@pytest.fixture(scope="module")
def fused(golden: Golden, head: RefinerHead) -> Tensor:
    with torch.no_grad():
        return head.fuse(golden["input.final_features"], golden["input.early_features"])


@pytest.fixture(scope="module")
def coarse(golden: Golden) -> Tensor:
    boxes = golden["input.coarse_boxes_xyxy"].tolist()
    size = golden.config["crop_size"]
    masks = torch.zeros(len(boxes), size, size)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return masks


@torch.no_grad()
def test_one_pass_of_the_refiner(
    golden: Golden, head: RefinerHead, fused: Tensor, coarse: Tensor
) -> None:
    found = head(fused, coarse)
    step, expected = strided(golden, "first_mask_logits")
    assert_close(found.logits[..., ::step, ::step], expected)
    assert_close(found.iou, golden["expected.first_iou"])


@torch.no_grad()
def test_the_mask_after_all_iterations(
    golden: Golden, head: RefinerHead, fused: Tensor, coarse: Tensor
) -> None:
    ious = golden["expected.iou_per_iteration"]
    assert len(ious) == head.config.iterations
    found = head.iterate(fused, coarse, len(ious))
    step, expected = strided(golden, "final_probs")
    assert_close(found.probs[:, ::step, ::step], expected)
    assert_close(found.iou, ious[-1].amax(dim=-1))


@torch.no_grad()
def test_predicted_ious_of_each_iteration(
    golden: Golden, head: RefinerHead, fused: Tensor, coarse: Tensor
) -> None:
    """`iterate` returns the last ones; those before are the best of what each feedback gives."""
    for count, expected in enumerate(golden["expected.iou_per_iteration"], start=1):
        mask = coarse if count == 1 else head.iterate(fused, coarse, count - 1).probs
        assert_close(head(fused, mask).iou, expected)
