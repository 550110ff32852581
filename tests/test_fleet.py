"""How work is cut."""

from __future__ import annotations

from itertools import chain

import pytest

from wm_engine.fleet import shards


@pytest.mark.parametrize("count", [1, 2, 5, 64, 97])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64, 200])
def test_shards_are_the_whole_in_order_and_even(count: int, workers: int) -> None:
    parts = shards(count, workers)
    assert list(chain.from_iterable(parts)) == list(range(count))
    assert len(parts) == min(count, workers)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_nothing_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="count"):
        shards(0, 2)
    with pytest.raises(ValueError, match="workers"):
        shards(3, 0)
