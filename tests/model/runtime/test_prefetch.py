"""How far work goes ahead of its use."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wordmask.model.runtime.prefetch import buffered_map


@given(weights=st.lists(st.integers(0, 9), max_size=20), depth=st.integers(1, 12))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=100)
def test_work_in_hand_weighs_no_more_than_the_depth_or_is_one_item(
    weights: list[int], depth: int
) -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = buffered_map(
            pool,
            lambda item: begun.append(item) or item,
            range(len(weights)),
            depth,
            weight=weights.__getitem__,
        )
        for used, item in enumerate(results):
            assert item == used, "results come in the order of the items"
            in_hand = [weights[each] for each in begun[used:]]
            assert sum(in_hand) <= depth or len(in_hand) == 1
    assert begun == list(range(len(weights)))


def test_no_more_items_are_taken_than_are_worked_on() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(1) as pool:
        results = buffered_map(pool, str, items(), depth=3)
        assert taken == [0, 1, 2]
        assert next(results) == "0"
        assert next(results) == "1"
        assert taken == [0, 1, 2, 3], (
            "one was put in the place of the first when the second was asked for"
        )


def test_an_error_of_the_work_is_raised_when_its_result_is_asked_for() -> None:
    with ThreadPoolExecutor(1) as pool:
        results = buffered_map(pool, lambda item: 1 // item, [1, 0], depth=2)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
