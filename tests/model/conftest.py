"""Fixtures of the model's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.fake_cuda import route_indexing_through_operators


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors may be made on CUDA, which this machine need not have."""
    with FakeTensorMode() as mode:
        route_indexing_through_operators(monkeypatch)
        yield mode
