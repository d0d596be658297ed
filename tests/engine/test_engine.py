"""The engine: whatever else is in the batch, each request's greedy ids are the oracle's."""

import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

import oracle
import pytest
import seq2seq_models
import tiny_models
import torch
from contract import prompt_of
from tiny_models import RECURRENT

from foreword import Backbone, Prefix, SoftPrompt
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.sampling import Sampling
from foreword.errors import BusyError, InputError, UnsupportedError


def ids_of(length: int, seed: int = 2) -> tuple[int, ...]:
    return tuple(tiny_models.ids(length, seed).tolist())


def request(
    prompt: SoftPrompt | Prefix | None, ids: Sequence[int], num_new: int = 6, **changes: Any
) -> Request:
    source = PromptSource.of(prompt) if prompt is not None else None
    return Request(tuple(ids), source, max_new_tokens=num_new, **changes)


def expected(family: str, prompt: SoftPrompt | None, ids: Sequence[int], num: int) -> list[int]:
    return oracle.greedy(tiny_models.shared(family), prompt, torch.tensor(ids), num)


def engine_of(family: str = "llama", **limits: Any) -> Engine:
    return Engine(Backbone(tiny_models.shared(family)), EngineLimits(**limits))


def is_empty(engine: Engine) -> bool:
    return not (
        engine.running or engine.num_decoding or engine.num_waiting or engine.kv_cache.num_bytes
        or engine.scheduler.prefilling
    )  # fmt: skip


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many ids each pass of the model reads."""
    real, counts = engine.runner.hidden, []

    def hidden(current: Any, ids: list[list[int]]) -> Any:
        counts.append(sum(map(len, ids)))
        return real(current, ids)

    monkeypatch.setattr(engine.runner, "hidden", hidden)
    return counts


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_requests_that_join_and_leave_at_any_step_get_the_oracles_ids(family: str) -> None:
    chance = random.Random(family)
    engine = engine_of(family, max_rows=5, chunk_tokens=8)
    prompts = [
        None,
        prompt_of(family, "embeddings", 6),
        prompt_of(family, "key_values", 6),
        prompt_of(family, "embeddings", 3),
    ]
    handles: list[tuple[Handle, SoftPrompt | None]] = []
    for index in range(16):
        prompt = chance.choice(prompts)
        ids = ids_of(chance.choice([1, 2, 5, 9, 20]), index)
        handles.append((engine.submit(request(prompt, ids, chance.randint(1, 9))), prompt))
        for _ in range(chance.randint(0, 3)):
            engine.step()
        if chance.random() < 0.2:
            chance.choice(handles)[0].cancel()
    engine.run()
    for handle, prompt in handles:
        found = expected(family, prompt, handle.request.ids, max(1, len(handle.ids)))
        assert handle.ids == found[: len(handle.ids)]
        assert handle.finish_reason == ("cancelled" if handle.is_cancelled else "length") or (
            len(handle.ids) == handle.request.max_new_tokens
        )
    assert is_empty(engine) and len(engine.prefix_cache) > 4


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3", *RECURRENT])
def test_a_conversation_goes_on_from_its_own_state(family: str) -> None:
    engine, prompt = engine_of(family), prompt_of(family, "key_values")
    first = engine.submit(request(prompt, ids_of(12)))
    engine.run()
    turn = (*first.request.ids, *first.ids, *ids_of(4))
    second = engine.submit(request(prompt, turn))
    other = engine.submit(request(None, turn))
    engine.run()
    assert second.num_reused == 12 + 6 - 1 and other.num_reused == 0
    assert second.ids == expected(family, prompt, turn, 6)
    assert other.ids == expected(family, None, turn, 6)


def test_a_branch_of_a_conversation_reuses_what_is_shared() -> None:
    engine, prompt = engine_of(), prompt_of("llama", "embeddings")
    engine.submit(request(prompt, ids_of(12)))
    engine.run()
    branch = (*ids_of(12)[:7], *ids_of(5, 9))
    handle = engine.submit(request(prompt, branch))
    engine.run()
    assert handle.num_reused == 7
    assert handle.ids == expected("llama", prompt, branch, 6)


def test_the_same_request_again_reads_one_token() -> None:
    engine = engine_of()
    for reused in (0, 11):
        handle = engine.submit(request(None, ids_of(12)))
        engine.run()
        assert handle.num_reused == reused
        assert handle.ids == expected("llama", None, ids_of(12), 6)


def test_a_prompts_state_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = engine_of(), prompt_of("llama", "embeddings")
    loads = []
    source = PromptSource(prompt.content_hash, 6, lambda: loads.append(1) or prompt)
    for seed in range(4):
        engine.submit(Request(ids_of(5, seed), source))
        engine.run()
    assert len(loads) == 1


def test_many_new_prompts_do_not_stall_the_others() -> None:
    engine = engine_of(chunk_tokens=8)
    running = engine.submit(request(None, ids_of(2), 30))
    engine.step()
    prompts = [
        SoftPrompt.from_embeddings(tiny_models.embeddings(tiny_models.shared("llama"), 6, seed))
        for seed in range(10, 16)
    ]
    handles = [engine.submit(request(prompt, ids_of(3))) for prompt in prompts]
    for count in range(1, 4):
        engine.step()
        assert len(running.ids) == 1 + count and len(engine.prefix_cache) == 2 * count
    engine.run()
    for prompt, handle in zip(prompts, handles, strict=True):
        assert handle.ids == expected("llama", prompt, ids_of(3), 6)


def test_states_stay_under_their_budget_least_recently_used_out() -> None:
    one = engine_of()
    one.submit(request(prompt_of("llama", "key_values", 6), ids_of(10)))
    one.run()
    budget = one.prefix_cache.num_bytes
    engine = engine_of(max_state_bytes=budget)
    for seed in range(6):
        handle = engine.submit(request(prompt_of("llama", "key_values", 6), ids_of(10, seed)))
        engine.run()
        assert 0 < engine.prefix_cache.num_bytes <= budget
        prompt = prompt_of("llama", "key_values", 6)
        assert handle.ids == expected("llama", prompt, ids_of(10, seed), 6)
    nothing = engine_of(max_state_bytes=0)
    for _ in range(2):
        handle = nothing.submit(request(prompt, ids_of(10)))
        nothing.run()
        assert handle.num_reused == 0 and not nothing.prefix_cache.num_bytes
        assert handle.ids == expected("llama", prompt, ids_of(10), 6)


def test_a_long_prompt_does_not_stall_the_others() -> None:
    engine = engine_of(chunk_tokens=8)
    running = engine.submit(request(None, ids_of(2), 30))
    engine.step()
    long = engine.submit(request(None, ids_of(80), 2))
    short = engine.submit(request(None, ids_of(3), 2))
    before = len(running.ids)
    while not short.choices:
        engine.step()
    assert not long.choices and len(running.ids) - before <= 4
    engine.run()
    assert long.ids == expected("llama", None, ids_of(80), 2)
    assert running.ids == expected("llama", None, ids_of(2), 30)


def test_a_long_prompt_gets_its_turn_among_many_short_ones() -> None:
    engine = engine_of(chunk_tokens=8, max_rows=4)
    long = engine.submit(request(None, ids_of(40), 1))
    for step in range(30):
        engine.submit(request(None, ids_of(7, step), 1))
        engine.step()
    assert long.finish_reason == "length"


def test_a_step_reads_as_many_prompts_to_their_end_as_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(chunk_tokens=40)
    passes = counted(engine, monkeypatch)
    # By the first one's length alone, three of the others would be left with one token each.
    lengths = (6, 7, 7, 7, 7, 15)
    handles = [engine.submit(request(None, ids_of(n, n + i), 1)) for i, n in enumerate(lengths)]
    engine.step()
    assert passes == [34] and [bool(handle.ids) for handle in handles] == [True] * 5 + [False]
    engine.run()
    for handle in handles:
        assert handle.ids == expected("llama", None, handle.request.ids, 1)


def test_cancelling_frees_the_row_at_the_next_step() -> None:
    engine = engine_of(max_rows=2, chunk_tokens=4)
    reading, decoding = (engine.submit(request(None, ids_of(n), 50)) for n in (60, 2))
    waiting = engine.submit(request(None, ids_of(4), 1))
    engine.step()
    engine.step()
    decoding.cancel()
    reading.cancel()
    engine.step()
    assert not engine.running and decoding.finish_reason == reading.finish_reason == "cancelled"
    waiting.cancel()
    engine.step()
    assert waiting.finish_reason == "cancelled" and not waiting.choices and is_empty(engine)
    decoding.cancel()  # once more is harmless


def test_an_answer_ends_at_a_stop_id_or_at_its_length() -> None:
    answer = expected("llama", None, ids_of(5), 6)
    engine = engine_of()
    stopped = engine.submit(request(None, ids_of(5), stop_ids=frozenset({answer[3]})))
    only_read = engine.submit(request(None, ids_of(5), 0))
    engine.run()
    assert stopped.ids == answer[: answer.index(answer[3]) + 1]
    assert stopped.finish_reason == "stop"
    assert only_read.ids == [] and only_read.finish_reason == "length"


def test_every_row_has_its_own_settings() -> None:
    engine = engine_of()
    settings = [
        Sampling(),
        Sampling(temperature=1.0, seed=3),
        Sampling(logit_bias={7: 1000.0}),
        Sampling(temperature=1.0, top_k=1),
    ]
    mixed = [engine.submit(request(None, ids_of(5), sampling=one)) for one in settings]
    engine.run()
    alone = engine.submit(request(None, ids_of(5), sampling=settings[1]))
    engine.run()
    greedy = expected("llama", None, ids_of(5), 6)
    assert mixed[0].ids == mixed[3].ids == greedy
    assert mixed[2].ids == [7] * 6
    assert mixed[1].ids == alone.ids != greedy


def test_prompt_logprobs_do_not_depend_on_what_is_known() -> None:
    engine, found = engine_of(), []
    for _ in range(2):
        handle = engine.submit(request(None, ids_of(12), num_prompt_logprobs=1))
        engine.run()
        found.append([choice.logprob for choice in handle.prompt_logprobs])
    assert len(found[0]) == 11 and found[1] == pytest.approx(found[0])


def test_tokens_are_counted() -> None:
    engine = engine_of()
    for _ in range(2):
        engine.submit(request(None, ids_of(12)))
        engine.run()
    assert engine.num_prompt_tokens == 24 and engine.num_reused_tokens == 11
    assert engine.num_new_tokens == 12


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_logprobs_are_the_oracles(form: str) -> None:
    prompt = prompt_of("mistral", form)
    engine = engine_of("mistral", chunk_tokens=5)
    handle = engine.submit(
        request(prompt, ids_of(12), num_prompt_logprobs=2, sampling=Sampling(num_logprobs=3))
    )
    engine.run()
    whole = torch.tensor([*ids_of(12), *handle.ids])
    logits = oracle.row_logits(tiny_models.shared("mistral"), prompt, whole)[:-1]
    logprobs = logits.log_softmax(-1).gather(1, whole[1:, None])[:, 0].tolist()
    found = [choice.logprob for choice in (*handle.prompt_logprobs, *handle.choices)]
    assert found == pytest.approx(logprobs, abs=1e-4)
    tops = [choice.top for choice in (*handle.prompt_logprobs, *handle.choices)]
    assert [len(top) for top in tops] == [2] * 11 + [3] * 6
    assert [top[0][0] for top in tops] == logits.argmax(-1).tolist()


class Even:
    """Allows even ids only, and says enough after three."""

    def __init__(self) -> None:
        self.count = 0

    def allowed(self) -> torch.Tensor:
        return torch.arange(97) % 2 == 0

    def accept(self, chosen_id: int) -> bool:
        assert chosen_id % 2 == 0
        self.count += 1
        return self.count == 3


def test_a_constraint_masks_its_own_row_and_ends_it() -> None:
    engine = engine_of()
    even = engine.submit(request(None, ids_of(5), constraint=Even()))
    free = engine.submit(request(None, ids_of(5)))
    engine.run()
    assert len(even.ids) == 3 and not any(one % 2 for one in even.ids)
    assert even.finish_reason == "stop"
    assert free.ids == expected("llama", None, ids_of(5), 6)


# What several read, is read once -----------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3"])
@pytest.mark.parametrize("form", [None, "embeddings", "key_values"])
def test_several_answers_to_one_prompt_read_it_once(
    family: str, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(family, form) if form else None
    settings = [Sampling(), *(Sampling(temperature=1.0, seed=seed) for seed in (1, 2)), Sampling()]
    asked = [request(prompt, ids_of(20), sampling=one) for one in settings]
    engine = engine_of(family, chunk_tokens=8)
    counts = counted(engine, monkeypatch)
    handles = engine.submit_all(asked)
    other = engine.submit(request(prompt, ids_of(7, 5)))
    engine.run()
    assert sum(counts) == 20 + 7 + 5 * (6 - 1)
    assert [handle.num_reused for handle in handles] == [0, 20, 20, 20]
    assert engine.num_prompt_tokens == 87 and engine.num_reused_tokens == 60
    for one, handle in zip(asked, handles, strict=True):
        alone = engine_of(family, max_state_bytes=0)
        again = alone.submit(one)
        alone.run()
        assert handle.ids == again.ids
    assert handles[0].ids == handles[3].ids == expected(family, prompt, ids_of(20), 6)
    assert len({tuple(handle.ids) for handle in handles}) == 3
    assert other.ids == expected(family, prompt, ids_of(7, 5), 6) and is_empty(engine)


@pytest.mark.parametrize("end", ["cancelled", "error"])
def test_where_the_reader_ends_another_reads_in_its_place(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of("llama", "embeddings")
    engine = engine_of(chunk_tokens=8)
    handles = engine.submit_all([request(prompt, ids_of(20))] * 4)
    engine.step()
    if end == "cancelled":
        handles[0].cancel()
        handles[1].cancel()
    else:
        with monkeypatch.context() as patch:
            broken_at(engine, patch, None)
            engine.step()
        assert handles[0].finish_reason == "error"
    engine.run()
    assert [handle.finish_reason for handle in handles[2:]] == ["length"] * 2
    for handle in handles[2 if end == "cancelled" else 1 :]:
        assert handle.ids == expected("llama", prompt, ids_of(20), 6)
    assert is_empty(engine)


def test_answers_that_find_no_row_at_first_read_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of("llama", "key_values")
    engine = engine_of(max_rows=2, max_state_bytes=0)
    counts = counted(engine, monkeypatch)
    handles = engine.submit_all([request(prompt, ids_of(20), 2 + index) for index in range(4)])
    engine.run()
    assert sum(counts) == 20 + 1 + 1 + sum(1 + index for index in range(4))
    for handle in handles:
        assert handle.ids == expected("llama", prompt, ids_of(20), len(handle.ids))


def test_a_request_begins_with_what_a_running_one_has_read() -> None:
    engine, prompt = engine_of("mistral"), prompt_of("mistral", "key_values")
    running = engine.submit(request(prompt, ids_of(12), 30))
    for _ in range(5):
        engine.step()
    turn = (*ids_of(12), *running.ids[:3], *ids_of(4, 9))
    same, other = engine.submit(request(prompt, turn)), engine.submit(request(None, turn))
    engine.run()
    assert (same.num_reused, other.num_reused) == (12 + 3, 0)
    assert same.ids == expected("mistral", prompt, turn, 6)
    assert other.ids == expected("mistral", None, turn, 6)


@pytest.mark.parametrize(("max_state_bytes", "num_read"), [(0, 40), (1 << 20, 20)])
def test_requests_of_several_calls_share_only_where_states_are_kept(
    max_state_bytes: int, num_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(max_state_bytes=max_state_bytes)
    counts = counted(engine, monkeypatch)
    for _ in range(2):
        engine.submit_all([request(None, ids_of(20), 1)] * 2)
    engine.run()
    assert sum(counts) == num_read


def test_prompt_logprobs_are_reported_to_every_answer() -> None:
    engine = engine_of(chunk_tokens=5)
    asked = request(None, ids_of(12), num_prompt_logprobs=1)
    handles = engine.submit_all([asked, asked, request(None, ids_of(12))])
    engine.run()
    assert [len(handle.prompt_logprobs) for handle in handles] == [11, 11, 0]
    assert handles[0].prompt_logprobs == handles[1].prompt_logprobs
    assert handles[0].prompt_logprobs is not handles[1].prompt_logprobs


def test_a_row_that_waits_for_its_twin_leaves_no_state_behind() -> None:
    engine = engine_of(chunk_tokens=8)
    prompt = prompt_of("llama", "key_values")
    first, second = engine.submit_all([request(prompt, ids_of(20))] * 2)
    engine.step()
    for known in list(engine.prefix_cache._entries):
        engine.prefix_cache._drop(known)
    second.cancel()
    engine.step()
    assert second.finish_reason == "cancelled" and not len(engine.prefix_cache)
    engine.run()
    assert first.ids == expected("llama", prompt, ids_of(20), 6)


# Recurrent rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrent_state_is_used_as_a_whole_or_not_at_all(family: str) -> None:
    engine, prompt = engine_of(family), prompt_of(family, "key_values")
    first = engine.submit(request(prompt, ids_of(12)))
    engine.run()
    told = (*ids_of(12), *first.ids)
    # The beginning of what has run, all of it, and the same with log-probabilities of every id.
    branch = engine.submit(request(prompt, (*ids_of(12)[:7], *ids_of(5, 9))))
    again = engine.submit(request(prompt, told[:-1]))
    further = engine.submit(request(prompt, told))
    asked = engine.submit(request(prompt, told, num_prompt_logprobs=1))
    engine.run()
    assert [one.num_reused for one in (branch, again, further, asked)] == [0, 0, len(told) - 1, 0]
    assert len(asked.prompt_logprobs) == len(told) - 1
    for one in (branch, again, further, asked):
        assert one.ids == expected(family, prompt, one.request.ids, 6)


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_rows_of_one_length_run_together_and_others_beside(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompt = engine_of(family, max_state_bytes=0), prompt_of(family, "embeddings")
    counts = counted(engine, monkeypatch)
    lengths = (6, 6, 6, 9)
    handles = [engine.submit(request(prompt, ids_of(n, s))) for s, n in enumerate(lengths)]
    copies = engine.submit_all([request(prompt, ids_of(6, 7)) for _ in range(2)])
    engine.step()
    assert sorted(counts) == [9, 24]  # the copies are read once
    engine.run()
    assert counts[-1] == len(handles) + len(copies)
    for one in (*handles, *copies):
        assert one.ids == expected(family, prompt, one.request.ids, 6)


@pytest.mark.parametrize("family", RECURRENT)
def test_a_pass_that_fails_leaves_recurrent_states_as_they_were(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompt = engine_of(family), prompt_of(family, "embeddings")
    handles = [engine.submit(request(prompt, ids_of(6, seed), 8)) for seed in range(3)]
    engine.step()
    engine.step()
    real, num_calls = engine.backbone.head, 0

    def head(states: torch.Tensor) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:  # after the layers have run
            raise torch.OutOfMemoryError("no memory")
        return real(states)

    monkeypatch.setattr(engine.backbone, "head", head)
    engine.run()
    assert num_calls > 3
    for one in handles:
        assert one.ids == expected(family, prompt, one.request.ids, 8)


# What fails, fails alone ------------------------------------------------------------------------


def raising() -> Any:
    raise InputError("no such file")


def test_a_prompt_that_cannot_be_loaded_fails_its_request_only() -> None:
    engine = engine_of()
    bad = engine.submit(Request(ids_of(5), PromptSource("0" * 64, 3, raising)))
    wrong = engine.submit(
        Request(ids_of(5), PromptSource("1" * 64, 3, lambda: prompt_of("llama", "embeddings")))
    )
    good = engine.submit(request(None, ids_of(5)))
    engine.run()
    assert bad.finish_reason == wrong.finish_reason == "error"
    assert "no such file" in str(bad.error) and "has changed" in str(wrong.error)
    assert good.ids == expected("llama", None, ids_of(5), 6)


@pytest.mark.parametrize("poison_is_read", [True, False])
def test_numbers_that_are_not_finite_end_one_request_and_leave_no_trace(
    poison_is_read: bool,
) -> None:
    """A key/value prompt that overflows only once a token attends to it."""
    good = prompt_of("llama", "key_values")
    huge = SoftPrompt.from_key_values([(k, v * 1e200) for k, v in good.key_values])
    engine = engine_of(max_rows=2, chunk_tokens=32)
    # The first keeps the width of the passes over the slots that the bad one leaves behind.
    rows = [ids_of(30), *(ids_of(9, seed) for seed in range(4))]
    others = [engine.submit(request(good, rows[0], 30))]
    bad = engine.submit(request(huge, ids_of(60)))
    others += [engine.submit(request(good, row, 5)) for row in rows[1:]]
    if not poison_is_read:
        for _ in range(2):
            engine.step()
        bad.cancel()
    engine.run()
    assert bad.finish_reason == ("error" if poison_is_read else "cancelled") and not bad.ids
    for row, handle in zip(rows, others, strict=True):
        assert handle.ids == expected("llama", good, row, len(handle.ids))
        assert handle.finish_reason == "length"


def broken_at(engine: Engine, monkeypatch: pytest.MonkeyPatch, poison: int | None) -> None:
    real = engine.runner.hidden

    def hidden(current: Any, ids: list[list[int]]) -> Any:
        if poison is None or any(poison in row for row in ids):
            raise RuntimeError("out of memory")
        return real(current, ids)

    monkeypatch.setattr(engine.runner, "hidden", hidden)


@pytest.mark.parametrize("when", ["read", "decoded"])
def test_a_request_that_breaks_the_model_fails_alone(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [tuple(i for i in ids_of(9, seed) if i != 50) for seed in range(4)]
    answers = [expected("llama", None, row, 6) for row in rows]
    poison = 50 if when == "read" else answers[2][2]
    engine = engine_of()
    broken_at(engine, monkeypatch, poison)
    bad = engine.submit(request(None, (50, *rows[2]) if when == "read" else rows[2]))
    handles = [engine.submit(request(None, row)) for row in rows]
    engine.run()
    assert bad.finish_reason == "error" and "out of memory" in str(bad.error)
    for row, answer, handle in zip(rows, answers, handles, strict=True):
        if poison not in (*row, *answer[:-1]):
            assert handle.ids == answer
    assert any(handle.finish_reason == "length" for handle in handles)


def test_a_model_that_always_fails_stops_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    broken_at(engine, monkeypatch, None)
    for seed in range(12):
        engine.submit(request(None, ids_of(9, seed)))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run()


class Broken(Even):
    """Fails in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def allowed(self) -> Any:
        if self.way == "allowed":
            raise InputError("no way on")
        return "nonsense" if self.way == "mask" else torch.ones(200, dtype=torch.bool)

    def accept(self, chosen_id: int) -> bool:
        if self.way == "accept":
            raise InputError("not in the grammar")
        return False


@pytest.mark.parametrize("way", ["allowed", "mask", "accept", "nothing"])
def test_a_constraint_that_fails_ends_its_own_request(way: str) -> None:
    engine = engine_of()
    bad = engine.submit(request(None, ids_of(5), constraint=Broken(way)))
    good = engine.submit(request(None, ids_of(5)))
    engine.run()
    assert bad.finish_reason == ("error" if way != "nothing" else "length")
    assert good.ids == expected("llama", None, ids_of(5), 6)


def test_a_listener_that_raises_ends_its_own_request() -> None:
    engine, heard = engine_of(), []

    def listener(handle: Handle) -> None:
        raise RuntimeError("loop is closed")

    bad = engine.submit(request(None, ids_of(4), listener=listener))
    good = engine.submit(request(None, ids_of(4), 3, listener=lambda h: heard.append(h.ids)))
    engine.run()
    assert bad.finish_reason == "error" and len(bad.ids) == 1
    assert heard == [good.ids[:1], good.ids[:2], good.ids[:3]]


# Limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "changes", "reason"),
    [
        ((), {}, "at least one id"),
        ((97,), {}, "from 0 to 96"),
        ((-1,), {}, "from 0 to 96"),
        ((1,) * 60, {}, "at most 64 are served"),
        ((1,), {"num_new": -1}, "at most"),
        ((1,), {"sampling": Sampling(logit_bias={97: 1.0})}, "logit_bias"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(
    ids: tuple[int, ...], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        engine_of(max_length=64).submit(request(None, ids, **changes))


def test_a_full_queue_refuses() -> None:
    engine = engine_of(max_waiting=2)
    for _ in range(2):
        engine.submit(request(None, ids_of(4)))
    with pytest.raises(BusyError, match="2 requests wait"):
        engine.submit(request(None, ids_of(4)))


def test_a_queue_takes_all_of_several_requests_or_none() -> None:
    engine = engine_of(max_waiting=2)
    with pytest.raises(InputError, match="3 answers in one call, of 2 at most"):
        engine.submit_all([request(None, ids_of(4))] * 3)  # it would never be served
    engine.submit(request(None, ids_of(4)))
    with pytest.raises(BusyError, match="1 requests wait already, of 2 at most"):
        engine.submit_all([request(None, ids_of(4))] * 2)
    engine.run()
    with pytest.raises(InputError, match="at least one id"):
        engine.submit_all([request(None, ids_of(4)), request(None, ())])
    assert not engine.num_waiting


def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    engine = engine_of(max_waiting=2, max_rows=1)
    engine.submit(request(None, ids_of(4), 50))
    engine.step()
    first, second = (engine.submit(request(None, ids_of(4))) for _ in range(2))
    second.cancel()
    engine.step()
    assert second.finish_reason == "cancelled" and first.finish_reason is None
    engine.submit(request(None, ids_of(4)))


def test_memory_for_slots_bounds_the_batch() -> None:
    engine = engine_of(max_slots=128, max_rows=8)
    handles = [engine.submit(request(None, ids_of(20, seed), 12)) for seed in range(8)]
    most = 0
    while engine.step():
        most = max(most, len(engine.running))
    assert most == 4
    for seed, handle in enumerate(handles):
        assert handle.ids == expected("llama", None, ids_of(20, seed), 12)


# Alone ------------------------------------------------------------------------------------------


def test_what_cannot_be_batched_is_served_alone_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_models.build("llama4", floor_scale=8)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 6))
    engine = Engine(Backbone(model))
    answer = oracle.greedy(model, prompt, torch.tensor(ids_of(7)), 5)
    with caplog.at_level(logging.WARNING):
        greedy = engine.submit(request(prompt, ids_of(7), 5, num_prompt_logprobs=1))
        stopped = engine.submit(request(prompt, ids_of(7), 5, stop_ids=frozenset(answer[2:3])))
        short = engine.submit(request(None, ids_of(3), 2))
        even = engine.submit(request(None, ids_of(7), 5, constraint=Even()))
        only_read = engine.submit(request(None, ids_of(9), 0))
        cancelled = engine.submit(
            request(None, ids_of(7), 5, listener=lambda handle: handle.cancel())
        )
        engine.run()
    assert len(caplog.records) == 1 and "served alone" in caplog.text
    assert greedy.ids == answer and greedy.finish_reason == "length"
    assert len(greedy.prompt_logprobs) == 6
    assert stopped.ids == answer[: answer.index(answer[2]) + 1] and stopped.finish_reason == "stop"
    assert short.ids == oracle.greedy(model, None, torch.tensor(ids_of(3)), 2)
    assert len(even.ids) == 3 and even.finish_reason == "stop"
    assert only_read.finish_reason == "length" and not only_read.ids
    assert len(cancelled.ids) == 1 and cancelled.finish_reason == "cancelled"


def test_what_is_served_alone_is_computed_in_the_precision_of_the_engines_thread() -> None:
    model = tiny_models.build("llama4", floor_scale=8, dtype=torch.float32)
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 6))
    rows = [ids_of(9, seed) for seed in range(8)]

    def generated() -> list[list[int]]:
        given = [torch.tensor([row]) for row in rows]
        found = [backbone.generate(prompt, one, max_new_tokens=20) for one in given]
        return [one[0, 9:].tolist() for one in found]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine, expected = Engine(backbone), generated()
        handles = [engine.submit(request(prompt, row, 20)) for row in rows]
        engine.run()
    assert expected != generated()
    assert [handle.ids for handle in handles] == expected


@pytest.mark.parametrize("family", ["llama", "mamba2", "bamba"])
@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_steps_in_and_out_of_inference_mode_go_on_from_each_other(
    family: str, modes: tuple[bool, bool]
) -> None:
    prompt, engine = prompt_of(family, "embeddings", 4), engine_of(family)
    handles = [engine.submit(request(prompt, ids_of(5, seed), 9)) for seed in (1, 2)]
    with torch.inference_mode(modes[0]):
        for _ in range(3):
            engine.step()
    with torch.inference_mode(modes[1]):
        handles.append(engine.submit(request(prompt, ids_of(20), 6)))
        engine.run()
    for handle in handles:
        ids, num_new = handle.request.ids, handle.request.max_new_tokens
        assert handle.ids == expected(family, prompt, ids, num_new)


def test_what_is_served_alone_goes_on_by_a_token_and_holds_up_nobody() -> None:
    model = tiny_models.build("llama4", floor_scale=8)
    engine = Engine(Backbone(model))
    long = [engine.submit(request(None, ids_of(7, seed), 9)) for seed in (1, 2)]
    short = engine.submit(request(None, ids_of(3), 2))
    for num_steps in range(1, 3):
        engine.step()
        assert [len(handle.ids) for handle in (*long, short)] == [num_steps, 0, num_steps]
    assert short.ids == oracle.greedy(model, None, torch.tensor(ids_of(3)), 2)
    long[0].cancel()
    engine.step()
    assert long[0].finish_reason == "cancelled" and len(long[0].ids) == 2 and engine.has_work
    engine.run()
    assert long[1].ids == oracle.greedy(model, None, torch.tensor(ids_of(7, 2)), 9)
    assert not [thread for thread in threading.enumerate() if thread.name == "alone"]


def test_a_closed_engine_leaves_no_thread_behind() -> None:
    engine = Engine(Backbone(tiny_models.build("llama4", floor_scale=8)))
    handle = engine.submit(request(None, ids_of(7), 9))
    engine.step()
    assert [thread for thread in threading.enumerate() if thread.name == "alone"]
    engine.close()
    assert handle.finish_reason == "cancelled" and not engine.has_work
    assert not [thread for thread in threading.enumerate() if thread.name == "alone"]


def test_a_recurrent_row_keeps_none_of_the_models_habits() -> None:
    backbone, prompt = (
        Backbone(tiny_models.build("falcon_h1")),
        prompt_of("falcon_h1", "embeddings"),
    )
    ids = expected("falcon_h1", prompt, ids_of(6), 5)
    habits = {
        "repetition_penalty": 9.0, "suppress_tokens": ids[:2], "eos_token_id": ids[1],
        "bad_words_ids": [[ids[0]]], "num_return_sequences": 2, "max_time": 1e-6,
    }  # fmt: skip
    for name, value in habits.items():
        setattr(backbone.model.generation_config, name, value)
    engine = Engine(backbone)
    handle = engine.submit(request(prompt, ids_of(6), 5))
    engine.run()
    assert (handle.ids, handle.finish_reason) == (ids, "length")
    assert backbone.model.generation_config.repetition_penalty == 9.0


def test_a_model_with_an_encoder_is_not_served() -> None:
    with pytest.raises(UnsupportedError, match="models with an encoder are not served"):
        Engine(Backbone(seq2seq_models.build("t5")))


@pytest.mark.parametrize("chunk_tokens", [5, 64])
def test_log_probabilities_from_an_id_on_let_those_before_it_be_reused(chunk_tokens: int) -> None:
    engine = engine_of(chunk_tokens=chunk_tokens)
    whole = engine.submit(request(None, ids_of(12), num_prompt_logprobs=1))
    engine.run()
    parts = [
        engine.submit(request(None, ids_of(12), num_prompt_logprobs=1, logprobs_from=first))
        for first in (8, 11, 12)
    ]
    engine.run()
    for part, first in zip(parts, (8, 11, 12), strict=True):
        assert part.num_reused == first - 1 and part.ids == whole.ids
        expected_ones = [one.logprob for one in whole.prompt_logprobs[first - 1 :]]
        assert [one.logprob for one in part.prompt_logprobs] == pytest.approx(expected_ones)
