"""Answers in OpenAI's format: streamed as whole, each token with its place, name and bytes."""

import asyncio
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.data.detokenizer import TextStream
from foreword.engine.sampling import Choice
from foreword.server import sse
from foreword.server.responses import MARK, ChatFormatter, CompletionFormatter, prompt_places
from foreword.server.streaming import Answers, Piece, StreamedAnswer

TOKENIZERS = {name: build() for name, build in small_tokenizers.BUILDERS.items()}
BYTES, FALLBACK = TOKENIZERS["byte-level"], TOKENIZERS["byte fallback"]


def answered(
    tokenizer: Any, choices: list[Choice], stop: tuple[str, ...] = (), prompt: tuple[int, ...] = ()
) -> tuple[list[StreamedAnswer], list[Piece]]:
    """Return an answer of some tokens, and its pieces as the engine's events make them."""
    request = SimpleNamespace(ids=prompt, stop_ids=frozenset(), prompt=None)
    told = [Choice(one, -1.0) for one in prompt[1:]]
    handle: Any = SimpleNamespace(
        request=request, num_reused=0, cancel=lambda: None, prompt_logprobs=told
    )
    answers = Answers(worker=None, tokenizer=tokenizer, stop=stop, seconds=1)  # type: ignore[arg-type]
    answers.answers = [StreamedAnswer(0, handle, TextStream(tokenizer, stop))]
    ends = [None] * (len(choices) - 1) + ["length"]
    found = [
        answers._piece(answers.answers[0], choice, end)
        for choice, end in zip(choices, ends, strict=True)
    ]
    return answers.answers, [piece for piece in found if piece is not None]


def plain(ids: list[int]) -> list[Choice]:
    return [Choice(one, -0.5, ((one, -0.5),)) for one in ids]


def streamed(formatter: Any, pieces: list[Piece]) -> tuple[str, dict[str, list[Any]]]:
    """Return the chunks of a completion, joined."""
    text, joined = "", {}
    for piece in pieces:
        chunks = formatter.chunks(piece, True)
        if not chunks:
            continue
        [chunk] = chunks
        choice = chunk["choices"][0]
        text += choice["text"]
        for key, values in choice["logprobs"].items():
            joined.setdefault(key, []).extend(values)
        assert all(offset <= len(text) for offset in choice["logprobs"]["text_offset"])
    return text, joined


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_stream_says_what_the_whole_answer_says(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    some = st.integers(0, len(tokenizer) - 1)
    choices = plain(data.draw(st.lists(some, min_size=1, max_size=15)))
    prompt = tuple(data.draw(st.lists(some, min_size=1, max_size=5)))
    stop = tuple(data.draw(st.lists(st.text("abEND ", min_size=1, max_size=3), max_size=2)))
    echoed = [tokenizer.decode(prompt)] if data.draw(st.booleans()) else None
    answers, pieces = answered(tokenizer, choices, stop, prompt)
    whole = CompletionFormatter("m", tokenizer, 1, echoed).body(answers, pieces, True)["choices"][0]
    text, joined = streamed(CompletionFormatter("m", tokenizer, 1, echoed), pieces)
    assert (text, joined) == (whole["text"], whole["logprobs"])
    offsets = joined["text_offset"]
    assert offsets == sorted(offsets) and all(0 <= one <= len(text) for one in offsets)
    for token, top in zip(joined["tokens"], joined["top_logprobs"], strict=True):
        assert top is None or token in top


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_stop_string_at_the_end_of_an_answer_is_why_it_ended(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = {"byte fallback": ["a", "<0xC3>", "<0xA9>"], "byte-level": ["a", "Ã", "©"]}
    ids = tokenizer.convert_tokens_to_ids(tokens.get(name.partition(",")[0], ["a", "b"]))
    whole = tokenizer.decode(ids)
    for extra in ([], tokenizer.convert_tokens_to_ids(["a"])):
        (answer,), pieces = answered(tokenizer, plain([*ids, *extra]), (whole[-1],))
        assert "".join(piece.text for piece in pieces) == whole[:-1]
        assert answer.finish_reason == "stop" and answer.num_tokens == len(ids)


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK])
def test_the_bytes_of_parts_of_a_character_are_its_bytes(tokenizer: Any) -> None:
    ids = tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    answers, pieces = answered(tokenizer, plain(ids))
    content = ChatFormatter("m", tokenizer, 1).body(answers, pieces, True)["choices"][0]
    tokens = content["logprobs"]["content"]
    assert content["message"]["content"] == "a🙂b"
    assert [token["bytes"] for token in tokens[1:5]] == [[0xF0], [0x9F], [0x99], [0x82]]
    assert bytes(itertools.chain(*(token["bytes"] for token in tokens))) == "a🙂b".encode()
    assert tokens[1]["token"] == "bytes:\\xf0" and tokens[1]["top_logprobs"][0] == {
        "token": "bytes:\\xf0", "logprob": -0.5, "bytes": [0xF0],
    }  # fmt: skip
    whole = CompletionFormatter("m", tokenizer, 1, None).body(answers, pieces, True)["choices"][0]
    assert whole["logprobs"]["text_offset"] == [0, 1, 1, 1, 1, 2]


def test_a_token_inside_of_a_text_keeps_its_space() -> None:
    spaces = FALLBACK.convert_tokens_to_ids(["<0x20>", "<0x20>", "a"])
    answers, pieces = answered(FALLBACK, plain(spaces))
    found = ChatFormatter("m", FALLBACK, 1).body(answers, pieces, True)["choices"][0]
    assert found["message"]["content"] == " a"
    assert [one["bytes"] for one in found["logprobs"]["content"]] == [[], [32], [97]]
    ids = FALLBACK.convert_tokens_to_ids(["▁hello", "▁a", "▁", "b"])
    answers, pieces = answered(FALLBACK, plain(ids))
    whole = CompletionFormatter("m", FALLBACK, 1, None).body(answers, pieces, True)["choices"][0]
    assert whole["text"] == "hello a b"
    assert whole["logprobs"]["tokens"] == ["hello", " a", " ", "b"]
    assert whole["logprobs"]["text_offset"] == [0, 5, 7, 8]


def test_tokens_of_one_name_are_all_told() -> None:
    one, other = FALLBACK.convert_tokens_to_ids(["b", "<0x62>"])
    outside = len(FALLBACK) + 7
    for chosen, second in ((one, other), (other, one)):
        top = ((second, -0.1), (chosen, -0.2), (outside, -0.3))
        answers, pieces = answered(FALLBACK, [Choice(chosen, -0.2, top)])
        found = CompletionFormatter("m", FALLBACK, 1, None).body(answers, pieces, True)
        told = found["choices"][0]["logprobs"]["top_logprobs"][0]
        assert told == {"b": -0.2, f"token_id:{second}": -0.1, f"token_id:{outside}": -0.3}


def test_a_special_token_has_a_name_and_no_bytes() -> None:
    answers, pieces = answered(BYTES, plain([*BYTES("ab")["input_ids"], BYTES.eos_token_id]))
    found = ChatFormatter("m", BYTES, 1).body(answers, pieces, True)["choices"][0]
    last = found["logprobs"]["content"][-1]
    assert (last["token"], last["bytes"]) == ("<|im_end|>", [])
    whole = CompletionFormatter("m", BYTES, 1, None).body(answers, pieces, True)["choices"][0]
    assert whole["text"] == "ab" and whole["logprobs"]["text_offset"] == [0, 1, 2]


def test_no_token_stands_behind_the_text_that_a_stop_string_cut() -> None:
    answers, pieces = answered(BYTES, plain(BYTES("xENDy")["input_ids"]), ("END",))
    formatter = CompletionFormatter("m", BYTES, 1, None)
    text, joined = streamed(formatter, [piece for piece in pieces if piece.choices])
    assert text == "x" and joined["text_offset"] == [0, 1, 1, 1]


def test_a_prompts_tokens_stand_in_the_text_that_was_given() -> None:
    ids = [BYTES.bos_token_id, *BYTES("Q: hi\nA:")["input_ids"]]
    offsets = [place.offset for place in prompt_places(ids, "hi", BYTES)]
    assert offsets == [0, 0, 0, 0, 0, 1, 2, 2, 2]
    shown = [place.offset for place in prompt_places(ids, BYTES.decode(ids), BYTES)]
    assert shown == [0, *range(7, 15)]


@pytest.mark.parametrize("text", ["s", "er", "user", "a"])
def test_a_prompts_text_is_found_where_the_template_holds_the_same(text: str) -> None:
    def ids(inner: str) -> list[int]:
        return [BYTES.bos_token_id, *BYTES(f"user\n{inner}\nassistant")["input_ids"]]

    offsets = [place.offset for place in prompt_places(ids(text), text, BYTES, ids(MARK))]
    size = len(text)
    assert offsets == [*[0] * 6, *range(size), *[size] * 10]


def test_many_logprobs_decode_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizers.byte_fallback()
    calls: list[Any] = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **options: calls.append(ids) or decode(ids, **options)
    )
    top = tuple((token_id, -1.0) for token_id in range(3, 23))
    choices = [Choice(3 + index % 20, -1.0, top) for index in range(500)]
    answers, pieces = answered(tokenizer, choices)
    calls.clear()
    for formatter in (
        ChatFormatter("m", tokenizer, 1), CompletionFormatter("m", tokenizer, 1, None)
    ):  # fmt: skip
        formatter.body(answers, pieces, True)
    assert len(calls) <= 4 * 20


def test_a_long_run_of_tokens_is_not_written_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Single bytes give no text until they end; each may have twenty likeliest tokens."""
    byte = FALLBACK.convert_tokens_to_ids("<0xE2>")
    _, pieces = answered(FALLBACK, plain([byte] * 200))
    in_threads = []

    async def apart(write: Any) -> Any:
        in_threads.append(1)
        return write()

    monkeypatch.setattr(asyncio, "to_thread", apart)
    formatter = ChatFormatter("m", FALLBACK, 1)
    written = [asyncio.run(sse._chunks(formatter, piece, True)) for piece in pieces[1:]]
    assert json.loads(str(written[-1])[6:])["choices"][0]["logprobs"]["content"][199]
    assert in_threads == [1]


def test_tokens_that_have_piled_up_leave_other_requests_their_turn() -> None:
    """As when a client that has not read for a while reads again."""

    async def turns_of_others() -> int:
        answers, _ = answered(BYTES, plain([5]))
        waiting = Answers(worker=None, tokenizer=BYTES, stop=(), seconds=9, answers=answers)  # type: ignore[arg-type]
        answers[0].finish_reason = None
        for choice in plain([5] * 100):
            waiting._queue.put_nowait((0, choice, None))
        waiting._queue.put_nowait((0, None, "length"))
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(others())
        assert len([piece async for piece in waiting.pieces()]) == 101
        task.cancel()
        return turns

    assert asyncio.run(turns_of_others()) >= 99
