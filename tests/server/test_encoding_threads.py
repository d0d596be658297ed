"""Requests become ids in bounded time, short texts beside whatever else is read."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import tiny_processors
from serving import config, running, tiny_backbone

from foreword import Backbone
from foreword.errors import BusyError, TooSlowError
from foreword.server import routes
from foreword.server.encoding_threads import EncodingThread, apart
from foreword.server.fields import is_longer
from foreword.server.protocol import ChatRequest, ClassifyRequest
from foreword.server.server import Server


@contextlib.contextmanager
def busy(thread: EncodingThread) -> Iterator[None]:
    """Keep a thread busy."""
    begun, end = threading.Event(), threading.Event()
    thread._executor.submit(lambda: (begun.set(), end.wait(30)))
    assert begun.wait(30)
    try:
        yield
    finally:
        end.set()


def run(thread: EncodingThread, call: Any, seconds: float = 30.0) -> Any:
    async def main() -> Any:
        return await thread.run(call, asyncio.get_running_loop().time() + seconds)

    return asyncio.run(main())


def test_what_waits_in_vain_is_told_to_come_back_and_never_runs() -> None:
    thread, calls = EncodingThread("test", 4), []
    with busy(thread), pytest.raises(BusyError, match="come back later"):
        run(thread, lambda: calls.append(1), 0.01)
    assert run(thread, lambda: 2) == 2 and not calls


def test_a_call_that_takes_too_long_says_so() -> None:
    thread, end = EncodingThread("test", 4), threading.Event()
    with pytest.raises(TooSlowError, match="send less"):
        run(thread, lambda: end.wait(30), 0.05)
    end.set()
    assert run(thread, lambda: 2) == 2


def test_no_more_calls_wait_than_may() -> None:
    thread = EncodingThread("test", 2)

    async def main() -> list[Any]:
        deadline = asyncio.get_running_loop().time() + 30
        calls = [asyncio.create_task(thread.run(lambda: 1, deadline)) for _ in range(3)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        end.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    end = threading.Event()
    thread._executor.submit(end.wait, 30)
    found = asyncio.run(main())
    assert found[:2] == [1, 1] and isinstance(found[2], BusyError)
    assert run(thread, lambda: 3) == 3  # and their places are free again


def test_a_calls_own_error_is_its_own() -> None:
    def fail() -> None:
        raise TimeoutError("of a disk")

    with pytest.raises(TimeoutError, match="of a disk"):
        run(EncodingThread("test", 1), fail)


def test_a_view_shares_all_but_what_is_not_safe_under_threads() -> None:
    model, processor = tiny_processors.shared("glm4v")
    backbone = Backbone(model, processor=processor, name="tiny")
    view = apart(backbone)
    assert view.passes is backbone.passes and view.tokenizer is not backbone.tokenizer
    assert view.tokenizer is view.processor.tokenizer


# A server ----------------------------------------------------------------------------------------


def state_of(server: Server) -> Any:
    return server.config.app.app.state.shared  # type: ignore[union-attr]


BODY: dict[str, Any] = {"model": "tiny", "max_tokens": 1}


def test_a_short_text_never_waits_behind_long_ones_or_media() -> None:
    server = Server(tiny_backbone(), None, config(max_length=200_000))
    with running(server) as address, httpx.Client(base_url=address, timeout=60) as http:
        long = {"model": "tiny", "prompt": "a" * 50_000}
        with concurrent.futures.ThreadPoolExecutor(1) as pool, busy(state_of(server).slow_encoder):
            waiting = pool.submit(http.post, "/tokenize", json=long)
            short = http.post("/tokenize", json={"model": "tiny", "prompt": "a"})
            answer = http.post("/v1/completions", json=BODY | {"prompt": "a"})
            assert short.json()["count"] == 1 and answer.status_code == 200
            assert not waiting.done()
        assert waiting.result(30).json()["count"] == 50_000


def test_who_waits_too_long_to_be_read_is_told_when_to_come_back() -> None:
    server = Server(tiny_backbone(), None, config(request_seconds=0.3))
    with running(server) as address, busy(state_of(server).slow_encoder):
        body = BODY | {"messages": [{"role": "user", "content": "a" * 50_000}]}
        found = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert found.status_code == 503 and int(found.headers["retry-after"]) >= 1


LONG = "a" * 50_000
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}


def called(**function: str) -> dict[str, Any]:
    """Return an answer with a call, and its result."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"} | function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def described(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}]}


SLOW: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"messages": [USER | {"content": [{"type": "text", "text": "a"}]}]}, False),
    ({"messages": [USER] * 100}, False),
    ({"messages": [USER | {"content": [{"type": "text", "text": "a"}, IMAGE]}]}, True),
    ({"messages": [USER | {"content": LONG}]}, True),
    ({"messages": [USER | {"content": [{"type": "text", "text": "a" * 20_000}] * 2}]}, True),
    ({"messages": [{"role": "assistant", "refusal": LONG}]}, True),
    ({"messages": [ANSWER | {"reasoning_content": LONG}]}, True),
    ({"messages": [called(arguments=LONG)]}, True),
    (described(description="a"), False),
    (described(description=LONG), True),
    (described(parameters={"properties": {LONG: {"enum": ["a"]}}}), True),
    (described(parameters={"properties": {"a": {"enum": [LONG]}}}), True),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
        {"enum": [LONG]}}}}, True),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "is_slow"), SLOW)
def test_media_and_long_texts_are_what_takes_a_while(
    changes: dict[str, Any], is_slow: bool
) -> None:
    body = ChatRequest.model_validate({"model": "a", "messages": [USER]} | changes)
    assert routes._is_slow(body) == is_slow


def test_choices_take_as_long_as_the_question_before_each_of_them() -> None:
    for prompt, choices, is_slow in (
        ("a" * 300, ["a", "b"], False),
        ("a" * 300, [f"{one}" for one in range(200)], True),
        ("a", [f"{one}{'a' * 900}" for one in range(100)], True),
        ("a" * 30_000, ["a", "b"], True),
    ):
        body = ClassifyRequest(model="a", prompt=prompt, choices=choices)
        assert body.is_longer(routes.LONG_TEXT) == is_slow


def test_ids_are_not_all_looked_at() -> None:
    assert is_longer([[1] * 10**6], 10) and not is_longer([[1] * 10], 10)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "a" * 100_000}, "has at least"),
        ({"prompt": ["a"] * 100}, "100 prompts times n = 1"),
        ({"prompt": "a", "n": 100}, "1 prompts times n = 100"),
    ],
)
def test_what_cannot_be_answered_is_not_tokenized(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tiny_backbone(), None, config())
    with running(server) as address:

        def tokenize(*_: Any, **__: Any) -> Any:
            raise AssertionError("tokenized")

        monkeypatch.setattr(type(server.worker.engine.backbone.tokenizer), "__call__", tokenize)
        found = httpx.post(f"{address}/v1/completions", json=BODY | changes, timeout=60)
    assert found.status_code == 400 and reason in found.json()["error"]["message"]


def test_one_schema_is_read_once_for_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tiny_backbone(), None, config())
    grammars, calls = state_of(server).grammars, []
    constraint = grammars.constraint
    monkeypatch.setattr(grammars, "constraint", lambda one: calls.append(1) or constraint(one))
    body = {"prompt": ["a", "b"], "n": 2, "response_format": {"type": "json_object"}}
    with running(server) as address:
        found = httpx.post(f"{address}/v1/completions", json=BODY | body, timeout=60)
    assert found.status_code == 200 and len(found.json()["choices"]) == 4 and len(calls) == 1


def test_metrics_of_many_prompts_are_not_written_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(tiny_backbone(), None, config())

    def text() -> bytes:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return b"all"

    monkeypatch.setattr(state_of(server).metrics, "text", text)
    with running(server) as address:
        assert httpx.get(f"{address}/metrics").text == "all"
