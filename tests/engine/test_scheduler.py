"""The scheduler: what is admitted, from what it starts, and which prefill next; no model runs."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from foreword.engine.limits import EngineLimits
from foreword.engine.prefix_cache import CacheEntry, PrefixCache
from foreword.engine.request import Request
from foreword.engine.request_state import RequestState
from foreword.engine.sampling import Sampling
from foreword.engine.scheduler import Scheduler
from foreword.errors import BusyError, InputError
from foreword.model.capabilities import inspect_model

LIMITS = EngineLimits(max_rows=4, max_slots=64, max_waiting=3, chunk_tokens=8)


def scheduler(**changes: int) -> Scheduler:
    capabilities = inspect_model(tiny_models.shared("llama"))
    return Scheduler(capabilities, dataclasses.replace(LIMITS, **changes))


def request(*ids: int, max_new_tokens: int = 2) -> Request:
    return Request(ids, max_new_tokens=max_new_tokens)


def admitted(ours: Scheduler, *requests: Request) -> list[RequestState]:
    """Return the states of requests that are all admitted, and that prefill."""
    running: list[RequestState] = []
    ours.add(requests)
    while (handle := ours.next_admitted(running)) is not None:
        running.append(RequestState(handle, len(running)))
        ours.prefilling.append(running[-1])
    assert len(running) == len(requests)
    return running


def test_requests_are_admitted_in_order_while_their_longest_fits() -> None:
    ours = scheduler()
    ours.add([request(1, 2), request(*range(1, 31)), request(3)])
    running: list[RequestState] = []
    for expected in (2, 30):  # 2 rows of 32 tokens fill 64 slots
        handle = ours.next_admitted(running)
        assert handle is not None and len(handle.request.ids) == expected
        running.append(RequestState(handle, len(running)))
    assert ours.next_admitted(running) is None and ours.num_waiting == 1
    assert ours.next_admitted(running[:1]) is not None and ours.num_waiting == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_prompt_logprobs": 1, "logprobs_from": 0}, "logprobs_from: expected at least 1, got"),
        ({"num_prompt_logprobs": -1}, "num_prompt_logprobs: expected 0 or more, got -1"),
        ({"sampling": Sampling(num_logprobs=-1)}, "num_logprobs: expected 0 or more, got -1"),
    ],
)
def test_reports_that_mean_nothing_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        scheduler().add([dataclasses.replace(request(1, 2), **changes)])


def test_all_requests_of_a_call_are_taken_or_none() -> None:
    ours = scheduler()
    ours.add([request(1), request(2)])
    with pytest.raises(BusyError, match="2 requests wait already, of 3 at most"):
        ours.add([request(3), request(4)])
    assert ours.num_waiting == 2


def test_what_was_cancelled_while_it_waited_ends() -> None:
    ours = scheduler()
    first, second = ours.add([request(1), request(2)])
    first.cancel()
    ours.drop_cancelled()
    assert first.finish_reason == "cancelled" and second.finish_reason is None
    assert ours.next_admitted([]) is second


def test_a_request_starts_from_what_saves_it_the_most() -> None:
    ours, cache = scheduler(), PrefixCache(1 << 20)
    one, other = admitted(ours, request(1, 2, 3, 4), request(1, 2, 9))
    assert ours.start_of(other, [one], cache) == (None, None, 0)
    state = ((torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)),)
    entry = CacheEntry(None, 0, np.array([1]), state)
    cache.add(entry)
    assert ours.start_of(other, [one], cache) == (None, entry, 1)
    one.num_finite = 4  # of which two are the same
    assert ours.start_of(other, [one], cache) == (one, None, 2)


def test_a_duplicate_waits_only_for_one_that_prefills() -> None:
    ours = scheduler()
    one, same, different = admitted(ours, request(1, 2), request(1, 2), request(1, 3))
    assert ours.duplicate_of(same, [one, different]) is one
    assert ours.duplicate_of(different, [one, same]) is None
    ours.leave(one)
    assert ours.duplicate_of(same, [one]) is None


def test_nothing_is_shared_between_calls_where_nothing_is_kept() -> None:
    ours = scheduler(max_state_bytes=0)
    (one,), (same,) = admitted(ours, request(1, 2)), admitted(ours, request(1, 2))
    one.num_finite = 2
    assert ours.duplicate_of(same, [one]) is None
    assert ours.start_of(same, [one], PrefixCache(0)).other is None


def test_requests_prefill_in_turn_those_of_like_length_together() -> None:
    ours = scheduler()
    short, long, other = admitted(ours, request(1, 2), request(*range(1, 13)), request(5, 6))
    states, limit = ours.next_prefill()
    assert states == [short, other, long] and limit == 2, "two end, and there is room for a third"
    for state in states:
        state.num_computed = 2
    ours.took_turn(states)
    assert list(ours.prefilling) == [long]
    assert ours.next_prefill() == ([long], 8), "no more than chunk_tokens in a step"
    long.num_computed = 10
    ours.took_turn([long])
    assert ours.next_prefill() == ([long], 2)
