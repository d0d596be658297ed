"""Operations that fail for want of memory, at any point: what is answered is exact, and the engine
goes on.
"""

import functools
import sys
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foreword import Backbone, SoftPrompt
from foreword.engine import sampling
from foreword.engine.engine import Engine
from foreword.engine.kv_cache import KVCache
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.sampling import Choice, Sampling
from foreword.model.capabilities import AttentionPattern, LayerKind

FAMILIES = ("llama", "qwen3_next")  # the other has recurrent layers beside those that attend
FULL = LayerKind(AttentionPattern("full_attention"))
LIMITS = EngineLimits(max_rows=4, max_slots=1024, chunk_tokens=16)


class Failing(TorchDispatchMode):
    """Lets some of torch's operations fail, by their number: those that the engine asks for, and
    one in fifty of the model's own.
    """

    def __init__(self, first: int = 1 << 62, count: int = 1) -> None:
        super().__init__()
        self.failing, self.num_seen, self.num_inner = range(first, first + count), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_asked_by_the_engine():
            self.num_inner += 1
        if _is_asked_by_the_engine() or self.num_inner % 50 == 0:
            self.num_seen += 1
            if self.num_seen - 1 in self.failing:
                raise torch.OutOfMemoryError("no memory, for the sake of a test")
        return func(*args, **(kwargs or {}))


def _is_asked_by_the_engine() -> bool:
    frame = sys._getframe(2)
    for _ in range(4):
        if "foreword/engine/" in frame.f_code.co_filename:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def prompt_of(family: str) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(tiny_models.shared(family), 5))


def asked(family: str) -> list[Request]:
    """Return requests of every kind: with a prompt and without, alike, drawn, and reported."""
    source = PromptSource.of(prompt_of(family))
    long, short = (tuple(tiny_models.ids(n, seed=n).tolist()) for n in (20, 4))
    return [
        Request(short, None, max_new_tokens=3),
        Request(long, source, max_new_tokens=4),
        Request(long, source, max_new_tokens=4),
        Request(short, source, Sampling(temperature=1.0, seed=3), max_new_tokens=4),
        Request(long[:9], None, max_new_tokens=2, num_prompt_logprobs=1),
        Request(short, source, Sampling(num_logprobs=2), max_new_tokens=80),
    ]


def new_engine(family: str) -> Engine:
    return Engine(Backbone(tiny_models.shared(family)), LIMITS)


def answered(handle: Handle) -> tuple[list[Choice], list[int]]:
    return handle.choices, [choice.id for choice in handle.prompt_logprobs]


def measured(family: str) -> tuple[list[tuple[list[Choice], list[int]]], int]:
    engine, failing = new_engine(family), Failing()
    model, prompt = tiny_models.shared(family), prompt_of(family)
    with failing:
        handles = engine.submit_all(asked(family))
        engine.run()
    greedy = [
        (handle, oracle.greedy(model, prompt if handle.request.prompt else None,
                               torch.tensor(handle.request.ids), handle.request.max_new_tokens))
        for handle in handles if handle.request.sampling.is_greedy
    ]  # fmt: skip
    assert all(handle.ids == ids for handle, ids in greedy)
    return [answered(handle) for handle in handles], failing.num_seen


undisturbed = functools.cache(measured)


def check(engine: Engine, wished: list[Any], handles: list[Handle], *, can_fail: bool) -> None:
    for handle, (choices, reported) in zip(handles, wished, strict=True):
        if handle.finish_reason == "error":
            assert can_fail and isinstance(handle.error, torch.OutOfMemoryError)
            continue
        found, ours = answered(handle)
        assert [one.id for one in found] == [one.id for one in choices]
        assert ours == reported
    assert not engine.has_work and not engine.kv_cache.num_bytes and not engine.num_decoding
    assert not engine.scheduler.prefilling


def run_with_failures(family: str, first: int, count: int, wished: list[Any]) -> int:
    """Let operations fail, check every answer, and ask again; return how many requests failed."""
    engine, failing = new_engine(family), Failing(first, count)
    handles = engine.submit_all(asked(family))
    with failing:
        engine.run()
    check(engine, wished, handles, can_fail=True)
    again = engine.submit_all(asked(family))
    engine.run()
    check(engine, wished, again, can_fail=False)
    return sum(handle.finish_reason == "error" for handle in handles)


@pytest.mark.parametrize("share", [0.01, 0.13, 0.37, 0.58, 0.83])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_fails_for_want_of_memory_harms_no_other_answer(
    family: str, share: float, count: int
) -> None:
    wished, total = undisturbed(family)
    run_with_failures(family, int(share * total), count, wished)


def test_layers_that_are_not_all_made_anew_keep_what_they_hold() -> None:
    cache = KVCache([FULL] * 2, EngineLimits(max_slots=512))
    cache.reserve(4, 64)
    state = tuple((torch.full((1, 5, 2), n), torch.full((1, 5, 2), -n)) for n in (1.0, 2.0))
    cache.put(1, state, 5)
    last = cache.layers[1].resize
    cache.layers[1].resize = lambda *_: (_ for _ in ()).throw(MemoryError())  # type: ignore
    with pytest.raises(MemoryError):
        cache.reserve(2, 200)
    cache.layers[1].resize = last  # type: ignore[method-assign]
    assert (cache.num_rows, cache.capacity) == (2, 64)
    cache.reserve(3, 100)
    assert {t.shape[0] for t in cache._tensors()} == {4}
    for found, kept in zip(cache.get(1, 5), state, strict=True):
        assert all(map(torch.equal, found, kept))


@pytest.mark.parametrize("max_slots", [8192, 8000, 4032])
def test_rows_and_slots_stay_within_the_limit_of_slots(max_slots: int) -> None:
    cache = KVCache([FULL], EngineLimits(max_slots=max_slots))
    state = ((torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)),)
    for num_rows, capacity in (
        (1, 30), (32, 60), (2, 2000), (1, 4000), (32, 30), (5, 700), (1, max_slots), (2, 1),
    ):  # fmt: skip
        cache.reserve(num_rows, capacity)
        cache.put(0, state, 1)
        assert cache.num_rows >= num_rows and cache.capacity >= capacity
        assert all(t.shape[0] * t.shape[2] <= max_slots for t in cache._tensors())


def test_a_long_request_among_short_ones_takes_no_more_slots_than_allowed() -> None:
    engine = Engine(Backbone(tiny_models.shared("llama")), EngineLimits(max_rows=8, max_slots=512))
    short = [Request((5, n), max_new_tokens=2 + 40 * (n == 7)) for n in range(1, 9)]
    long = Request(tuple(tiny_models.ids(200).tolist()), max_new_tokens=3)
    handles, most = engine.submit_all([*short, long, *short]), 0
    while engine.step():
        sizes = [t.shape[0] * t.shape[2] for t in engine.kv_cache._tensors()]
        most = max([most, *sizes])
    assert 256 <= most <= 512
    for handle in handles:
        ids = torch.tensor(handle.request.ids)
        assert handle.ids == oracle.greedy(
            tiny_models.shared("llama"), None, ids, handle.request.max_new_tokens
        )


def test_a_draw_that_failed_is_made_again_with_the_same_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, settings = torch.randn(1, 97), Sampling(temperature=1.0, seed=4)
    first, second = sampling.Sampler(settings), sampling.Sampler(settings)
    wished = [sampling.choose(logits, [first]) for _ in range(3)]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch, "searchsorted", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        sampling.choose(logits, [second])
    assert [sampling.choose(logits, [second]) for _ in range(3)] == wished
