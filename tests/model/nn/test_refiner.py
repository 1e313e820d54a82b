"""The refiner head beyond the golden file: feedback, stability, and masks of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny import tiny_model
from wordmask.model.nn.config import RefinerConfig
from wordmask.model.nn.refiner import Candidates, RefinerHead

SIZE, PATCHES, WIDTH = 70, 25, 32


@pytest.fixture(scope="module")
def head() -> RefinerHead:
    return tiny_model().head


def features(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(rows, PATCHES, WIDTH, generator=generator) for _ in range(2))


def boxes(rows: int) -> Tensor:
    masks = torch.zeros(rows, SIZE, SIZE)
    for row in range(rows):
        masks[row, 10 + 5 * row : 40, 20 : 60 - 5 * row] = 1
    return masks


class Scripted(RefinerHead):
    """Answers from a list, and keeps what it was asked."""

    def __init__(self, answers: list[Candidates]) -> None:
        super().__init__(RefinerConfig(enc_dim=WIDTH, embed_dim=32, num_heads=2), 5)
        self.answers, self.asked = answers, []

    def best_candidate(self, fused_BCGG: Tensor, mask_BSS: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(mask_BSS)
        logits, iou = self.answers[len(self.asked) - 1]
        return torch.stack(
            [row[best] for row, best in zip(logits, iou.argmax(dim=1), strict=True)]
        ), iou.amax(dim=1)


def candidates(*ious: tuple[float, ...], seed: int = 0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(ious), len(ious[0]), 6, 6, generator=generator)
    return Candidates(logits=logits, iou=torch.tensor(ious))


def test_the_mask_of_highest_predicted_iou_is_fed_back_as_probabilities():
    first, second = (
        candidates((0.1, 0.9, 0.3), (0.7, -0.2, 0.6)),
        candidates((5.0, 1.0, 2.0), (0.0, 0.1, 0.2), seed=1),
    )
    head, coarse = Scripted([first, second]), torch.ones(2, 6, 6)
    found = head.iterate(torch.zeros(2, 32, 5, 5), coarse, 2)
    assert torch.equal(head.asked[0], coarse)
    assert torch.equal(
        head.asked[1], torch.stack([first.logits[0, 1], first.logits[1, 0]]).sigmoid()
    )
    assert torch.equal(
        found.probs, torch.stack([second.logits[0, 0], second.logits[1, 2]]).sigmoid()
    )
    assert found.iou.tolist() == pytest.approx([5.0, 0.2])  # raw: not confined to 0..1


def test_stability_is_the_iou_of_the_last_two_masks():
    def fixed(mask: Tensor) -> Candidates:
        return Candidates(logits=(mask * 2 - 1)[None, None] * 9, iou=torch.ones(1, 1))

    small, large, none = torch.zeros(6, 6), torch.zeros(6, 6), torch.zeros(6, 6)
    small[:2, :3] = 1
    large[:4, :3] = 1
    for last_two, expected in [
        ((small, large), 0.5),
        ((large, large), 1.0),
        ((none, large), 0.0),
        ((none, none), 1.0),
    ]:
        head = Scripted([fixed(mask) for mask in (large, *last_two)])
        found = head.iterate(torch.zeros(1, 32, 5, 5), small[None], 3)
        assert found.stability.tolist() == [expected]


def test_one_iteration_is_compared_with_the_coarse_mask():
    coarse = torch.zeros(1, 6, 6)
    coarse[:, :3] = 1
    answer = Candidates(logits=torch.full((1, 1, 6, 6), 9.0), iou=torch.ones(1, 1))
    found = Scripted([answer]).iterate(torch.zeros(1, 32, 5, 5), coarse, 1)
    assert found.stability.tolist() == [0.5]


@torch.no_grad()
def test_a_crop_does_not_depend_on_the_others_of_its_batch(head):
    final, early = features(3)
    together = head.iterate(head.fuse(final, early), boxes(3), 3)
    for row in range(3):
        one = slice(row, row + 1)
        alone = head.iterate(head.fuse(final[one], early[one]), boxes(3)[one], 3)
        torch.testing.assert_close(together.probs[one], alone.probs, rtol=0, atol=1e-4)
        torch.testing.assert_close(together.iou[one], alone.iou, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_best_is_the_candidate_of_highest_predicted_iou(head):
    final, early = features(3)
    fused = head.fuse(final, early)
    every = head(fused, boxes(3))
    logits, iou = head.best_candidate(fused, boxes(3))
    best = every.iou.argmax(dim=1)
    assert torch.equal(iou, every.iou.amax(dim=1))
    torch.testing.assert_close(logits, every.logits[torch.arange(3), best], rtol=0, atol=1e-5)


def answers_at(*changes: tuple[float, ...]) -> list[Candidates]:
    """Return candidates of 6 x 6 for some rows, of which so many lines of pixels are set.

    Their IoUs differ by row and iteration.
    """
    answers = []
    for count, lines in enumerate(changes):
        logits = torch.full((len(lines), 1, 6, 6), -9.0)
        for row, line in enumerate(lines):
            logits[row, :, :line] = 9
        answers.append(
            Candidates(logits=logits, iou=torch.tensor([[10.0 * count + line] for line in lines]))
        )
    return answers


def test_a_settled_row_leaves_the_batch_and_the_others_go_on():
    head = Scripted(answers_at((3, 1, 2), (3, 2, 4), (3, 4), (5,)))
    coarse = torch.zeros(3, 6, 6)
    found = head.iterate(torch.zeros(3, 32, 5, 5), coarse, 4, settle=0.1)
    assert [len(mask) for mask in head.asked] == [3, 3, 2, 1]
    assert found.iterations.tolist() == [2, 4, 3]
    assert [int((probs > 0.5).sum()) for probs in found.probs] == [3 * 6, 5 * 6, 4 * 6]
    assert found.iou.tolist() == [13, 35, 24]
    assert found.stability.tolist() == pytest.approx([1, 3 / 5, 1])


def test_the_loop_ends_with_the_last_row():
    head = Scripted(answers_at((3, 1), (3, 1)))
    assert head.iterate(
        torch.zeros(2, 32, 5, 5), torch.zeros(2, 6, 6), 5, settle=0.1
    ).iterations.tolist() == [2, 2]
    assert len(head.asked) == 2


def test_a_change_of_exactly_the_limit_is_not_settled():
    head = Scripted(answers_at((0,), (1,), (1,)))
    assert head.iterate(
        torch.zeros(1, 32, 5, 5), torch.ones(1, 6, 6), 4, settle=1 / 6
    ).iterations.tolist() == [3]


@torch.no_grad()
def test_a_settled_row_is_as_if_it_had_run_alone(head):
    final, early = features(6)
    fused = head.fuse(final, early)
    coarse = torch.cat([boxes(3), 1 - boxes(3)])
    found = head.iterate(fused, coarse, 5, settle=0.2)
    assert len(set(found.iterations.tolist())) > 1, "the rows must differ for this to show anything"
    for row, count in enumerate(found.iterations.tolist()):
        one = slice(row, row + 1)
        alone = head.iterate(fused[one], coarse[one], count)
        torch.testing.assert_close(found.probs[one], alone.probs, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.iou[one], alone.iou, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.stability[one], alone.stability, rtol=0, atol=1e-2)


@torch.no_grad()
def test_no_row_ends_early_unless_asked(head):
    final, early = features(2)
    found = head.iterate(head.fuse(final, early), boxes(2), 4)
    assert found.iterations.tolist() == [4, 4]


@torch.no_grad()
def test_mask_and_both_features_matter(head):
    final, early = features(1)
    before = head(head.fuse(final, early), boxes(1))
    for changed in (
        head(head.fuse(final.flip(1), early), boxes(1)),
        head(head.fuse(final, early.flip(1)), boxes(1)),
        head(head.fuse(final, early), 1 - boxes(1)),
    ):
        assert not torch.allclose(changed.logits, before.logits, atol=1e-3)
        assert not torch.allclose(changed.iou, before.iou, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_uniform_masks_give_finite_answers(head, value):
    final, early = features(1)
    found = head.iterate(head.fuse(final, early), torch.full((1, SIZE, SIZE), value), 5)
    assert found.probs.shape == (1, SIZE, SIZE)
    assert found.probs.min() >= 0
    assert found.probs.max() <= 1
    assert found.iou.isfinite().all()


@torch.no_grad()
def test_logits_come_at_the_size_of_the_mask(head):
    final, early = features(1)
    found = head(head.fuse(final, early), torch.ones(1, 64, 64))
    assert found.logits.shape == (1, 4, 64, 64)


def test_default_sizes_are_the_published_ones():
    with torch.device("meta"):
        head = RefinerHead(RefinerConfig(), 27)
        final = torch.empty(2, 729, 1152)
        fused = head.fuse(final, final)
        found = head(fused, torch.empty(2, 378, 378))
    assert fused.shape == (2, 256, 27, 27)
    assert found.logits.shape == (2, 4, 378, 378)
    assert found.iou.shape == (2, 4)
    assert {
        name: tuple(p.shape)
        for name, p in head.mask_encoder.named_parameters()
        if name.endswith("0.weight")
    } == {
        "conv1.0.weight": (16, 1, 3, 3),
        "conv2.0.weight": (32, 16, 3, 3),
        "conv3.0.weight": (64, 32, 3, 3),
        "conv4.0.weight": (256, 64, 3, 3),
    }
    assert [
        module.num_groups for module in head.mask_encoder.modules() if hasattr(module, "num_groups")
    ] == [1, 8, 16, 32]
