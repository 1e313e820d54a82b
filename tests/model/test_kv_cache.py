"""What is written where, and that branches are copies."""

from __future__ import annotations

import torch

from model.kv_cache import KVCache


def empty(rows: int = 3, slots: int = 6) -> KVCache:
    return KVCache.empty(layers=2, rows=rows, heads=2, slots=slots, head_dim=4, device=torch.device("cpu"), dtype=torch.float32)


def filled(rows: int = 3, slots: int = 6) -> KVCache:
    cache = empty(rows, slots)
    cache.k.copy_(torch.arange(cache.k.numel()).view_as(cache.k))
    cache.v.copy_(-cache.k)
    return cache


def test_each_row_is_written_at_its_own_positions():
    cache = empty()
    positions = torch.tensor([[0, 1], [4, 2], [5, 0]])
    k = torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    cache.write(1, positions, k, -k)
    for row in range(3):
        for step in range(2):
            slot = positions[row, step]
            assert torch.equal(cache.k[1, row, :, slot], k[row, :, step])
            assert torch.equal(cache.v[1, row, :, slot], -k[row, :, step])
    assert cache.k[0].eq(0).all()
    assert int(cache.k[1].ne(0).any(dim=-1).sum()) == 3 * 2 * 2  # rows x steps x heads, and nothing else


def test_a_branch_is_a_copy_with_room_for_more():
    source = filled()
    branch = source.branch(torch.tensor([2, 0, 2, 2]), slots=9)
    assert branch.k.shape == (2, 4, 2, 9, 4)
    for row, origin in enumerate([2, 0, 2, 2]):
        assert torch.equal(branch.k[:, row, :, :6], source.k[:, origin])
        assert torch.equal(branch.v[:, row, :, :6], source.v[:, origin])
    assert branch.k[:, :, :, 6:].eq(0).all()


def test_writing_to_a_branch_leaves_its_source_and_its_siblings_alone():
    source = filled()
    before = source.k.clone()
    branch = source.branch(torch.tensor([1, 1]), slots=7)
    new = torch.full((1, 2, 1, 4), 9.0)
    row = branch.rows(torch.tensor([0]))
    row.write(0, torch.tensor([[3]]), new, new)
    branch.write(0, torch.tensor([[6], [2]]), new.expand(2, -1, -1, -1), new.expand(2, -1, -1, -1))
    assert torch.equal(source.k, before)
    assert torch.equal(branch.k[:, 1, :, 3], before[:, 1, :, 3])
    assert branch.k[0, 0, :, 6].eq(9).all()
    assert branch.k[0, 1, :, 2].eq(9).all()
    assert torch.equal(branch.k[0, 0, :, 2], before[0, 1, :, 2])


def test_rows_keeps_order():
    source = filled()
    kept = source.rows(torch.tensor([2, 0]))
    assert torch.equal(kept.k, source.k[:, [2, 0]])
    assert torch.equal(kept.v, source.v[:, [2, 0]])
