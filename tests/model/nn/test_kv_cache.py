"""The cache keeps each row's positions apart, and shared prefixes serve the right rows."""

from __future__ import annotations

import pytest
import torch

from wordmask.model.nn.kv_cache import KVCache, SharedPrefix


def empty(rows: int = 3, max_len: int = 6) -> KVCache:
    return KVCache.zeros(
        layers=2,
        rows=rows,
        heads=2,
        max_len=max_len,
        head_dim=4,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def filled(rows: int = 3, max_len: int = 6) -> KVCache:
    cache = empty(rows, max_len)
    cache.k.copy_(torch.arange(cache.k.numel()).view_as(cache.k))
    cache.v.copy_(-cache.k)
    return cache


def test_each_row_is_written_at_its_own_positions():
    cache = empty()
    positions = torch.tensor([[0, 1], [4, 2], [5, 0]])
    k = torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    seen_k, seen_v = cache.extend(1, cache.flat_indices(positions), k, -k, length=5)
    assert torch.equal(seen_k, cache.k[1, :, :, :5])
    assert torch.equal(seen_v, cache.v[1, :, :, :5])
    for row in range(3):
        for step in range(2):
            slot = positions[row, step]
            assert torch.equal(cache.k[1, row, :, slot], k[row, :, step])
            assert torch.equal(cache.v[1, row, :, slot], -k[row, :, step])
    assert cache.k[0].eq(0).all()
    assert (
        int(cache.k[1].ne(0).any(dim=-1).sum()) == 3 * 2 * 2
    )  # rows x steps x heads, and nothing else


@pytest.mark.parametrize(
    "entry_of_row", [[0], [1, 0], [2, None, 2, 0, 2, 1, 2], [None, 0, None, 0]]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_each_row_meets_the_keys_and_values_of_its_own_image(
    entry_of_row: list[int | None], steps: int
):
    entries = filled()
    prefix = SharedPrefix.build(entries, entry_of_row, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(entry_of_row), 2, steps, 4, generator=generator)
    weights = torch.rand(len(entry_of_row), 2, steps, 6, generator=generator)
    scores, mixed = prefix.scores(1, q), prefix.weighted_values(1, weights)
    assert scores.shape == weights.shape
    assert mixed.shape == q.shape
    for row, entry in enumerate(entry_of_row):
        if entry is not None:
            torch.testing.assert_close(scores[row], q[row] @ entries.k[1, entry].transpose(1, 2))
            torch.testing.assert_close(mixed[row], weights[row] @ entries.v[1, entry])


def test_copied_rows_do_not_follow_their_source_and_the_others_stay():
    target, source = filled(rows=4, max_len=8), filled(rows=2)
    before = target.k.clone()
    target.copy_rows(torch.tensor([3, 1]), source)
    for row, origin in ((3, 0), (1, 1)):
        assert torch.equal(target.k[:, row, :, :6], source.k[:, origin])
        assert torch.equal(target.v[:, row, :, :6], source.v[:, origin])
        assert torch.equal(target.k[:, row, :, 6:], before[:, row, :, 6:])
    assert torch.equal(target.k[:, [0, 2]], before[:, [0, 2]])
    source.k.zero_()
    assert target.k[:, 3, :, :6].ne(0).any()


def test_selected_rows_keep_their_order():
    source = filled()
    kept = source.select(torch.tensor([2, 0]))
    assert torch.equal(kept.k, source.k[:, [2, 0]])
    assert torch.equal(kept.v, source.v[:, [2, 0]])
