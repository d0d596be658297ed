"""What is known: the longest shared beginning is found, and the least recently used goes first."""

import numpy as np
import torch

from foreword.engine.prefix_cache import CacheEntry, PrefixCache


def known(ids: list[int], content_hash: str | None = "a", num_virtual: int = 2) -> CacheEntry:
    length = num_virtual + len(ids)
    state = ((torch.zeros(1, length, 1), torch.zeros(1, length, 1)),)
    return CacheEntry(content_hash, num_virtual, np.array(ids, dtype=np.int64), state)


def test_the_longest_shared_beginning_is_found() -> None:
    states = PrefixCache(10_000)
    short, long = known([1, 2, 3]), known([1, 2, 9, 4, 5])
    states.add(short)
    states.add(long)
    assert states.find("a", [1, 2, 9, 4, 7]) == (long, 4)
    assert states.find("a", [1, 2, 3, 3]) == (short, 3)
    assert states.find("a", [8])[1] == 0  # type: ignore[index]
    assert states.find("b", [1, 2, 3]) is None


def test_a_state_of_the_bare_model_that_shares_nothing_is_none() -> None:
    states = PrefixCache(10_000)
    states.add(known([1, 2], None, 0))
    assert states.find(None, [2, 1]) is None
    assert states.find(None, [1, 3])[1] == 1  # type: ignore[index]


def test_the_least_recently_used_goes_first() -> None:
    states = PrefixCache(3 * known([0, 0]).num_bytes)
    for name in "abc":
        states.add(known([1, 2], name))
    states.find("a", [1])
    states.add(known([1, 2], "d"))
    assert [name for name in "abcd" if states.find(name, [1])] == ["a", "c", "d"]
    assert states.num_bytes == states.max_bytes


def test_a_longer_state_replaces_the_one_it_continues_but_not_the_prompts_own() -> None:
    states = PrefixCache(10_000)
    for ids in ([], [1, 2], [1, 2, 3], [1, 2], [1, 2, 3]):
        states.add(known(ids))
    assert len(states) == 2
    assert states.num_bytes == known([]).num_bytes + known([1, 2, 3]).num_bytes


def test_a_state_larger_than_the_budget_is_not_kept() -> None:
    states = PrefixCache(8)
    states.add(known([1, 2, 3]))
    assert len(states) == states.num_bytes == 0
