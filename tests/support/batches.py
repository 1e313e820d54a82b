"""A batch of the engine to be stepped by hand."""

from __future__ import annotations

from collections.abc import Iterable

from wordmask.model.decoding.batch import Batch
from wordmask.model.decoding.engine import Engine, first_batch, new_pool
from wordmask.model.decoding.requests import ImageRequests, RequestQueue


def started_batch(engine: Engine, images: Iterable[ImageRequests]) -> Batch:
    """Return a batch of the first requests, prefilled and ready to step."""
    settings = engine.settings
    queue = RequestQueue(engine.model, settings, iter(images))
    max_len = queue.next_max_len(at_least=0)
    assert max_len is not None, "images is empty: give at least one with a prompt"
    return first_batch(engine.model, settings, queue, new_pool(settings), max_len)
