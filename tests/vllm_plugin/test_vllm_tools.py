"""Tools on vLLM: shown, held and read as foreword's own server does it, without vLLM."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import serving
import torch
from tiny_tokenizer import tiny_tokenizer
from tool_templates import HERMES, SILENT

from foreword import EncodingConfig
from foreword.data import encoding
from foreword.errors import ForewordError, InputError, UnsupportedError
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog
from foreword.server.tool_answers import CallsOfAnswers
from foreword.vllm_plugin import signing
from foreword.vllm_plugin.frontend import Bound, Frontend, Limits
from foreword.vllm_plugin.responses import ResponseRewriter
from foreword.vllm_plugin.store_watcher import Watch

TOOL = {"type": "function", "function": {"name": "turn_on", "parameters": {"type": "object"}}}
USER: Any = {"role": "user", "content": "lamp"}
CALL = {"type": "function", "id": "a", "function": {"name": "turn_on", "arguments": "{}"}}
CALLED: Any = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": iter([CALL])},  # as vLLM has it
    {"role": "tool", "content": "done", "tool_call_id": "a"},
]
ANSWER = 'so <tool_call>\n{"name": "turn_on", "arguments": {"a": 1}}\n</tool_call>'


def front(directory: Path, template: str = HERMES, **limits: Any) -> Frontend:
    backbone, store = serving.tiny_backbone(), Store(directory / "store")
    serving.fill(store, backbone, directory, "a")
    watch = Watch(Catalog(backbone, store, "tiny"), store, ["tiny"])
    watch.look()
    known = Limits(4096, serving.VOCAB, torch.float64, end_ids=(9,), **limits)
    return Frontend(watch.catalog, watch, tiny_tokenizer(chat_template=template), known)


@pytest.fixture
def hermes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Frontend:
    monkeypatch.setenv(signing.VARIABLE, "s")
    return front(tmp_path)


def bind(found: Frontend, **fields: Any) -> Bound:
    given = {
        "model": "a", "messages": [USER], "max_tokens": None, "max_completion_tokens": 4,
        "cache_salt": None, "repetition_penalty": None, "tools": [TOOL], "tool_choice": "auto",
        "parallel_tool_calls": True,
    }  # fmt: skip
    return found.bind(SimpleNamespace(**given | fields), is_chat=True)


def row_of(found: Frontend, turns: Any, tools: Any) -> list[int]:
    return encoding.encode_prompt(turns, found.tokenizer, EncodingConfig(), tools=tools)


def test_tools_and_their_turns_are_shown_by_the_template(hermes: Frontend) -> None:
    bound = bind(hermes, messages=list(CALLED))
    turn = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert bound.rows[0].ids[3:] == row_of(hermes, [USER, turn, CALLED[2]], [TOOL])
    assert bound.use is not None and bound.use.grammar is None
    for nothing in ({"tool_choice": "none"}, {"tools": None, "tool_choice": "none"}):
        bound = bind(hermes, **nothing)
        assert bound.rows[0].ids[3:] == row_of(hermes, [USER], ()) and bound.use is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [TOOL, TOOL]}, "two are called 'turn_on'"),
        ({"tools": [TOOL | {"more": 1}]}, r"tools\.0\.more"),
        ({"tools": None, "tool_choice": "required"}, "required needs tools"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "tool_calls are for a turn of the assist"),
        ({"response_format": {"type": "json_object"}}, "response_format beside tools"),
        ({"tool_choice": "required"}, "--structured-outputs-config"),
        ({"parallel_tool_calls": False}, "--structured-outputs-config"),
    ],
)
def test_what_cannot_be_is_refused_by_name(hermes: Frontend, fields: Any, words: str) -> None:
    with pytest.raises((InputError, UnsupportedError), match=words):
        bind(hermes, **fields)


def test_a_template_that_shows_no_tools_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.VARIABLE, "s")
    with pytest.raises(ForewordError, match="tools"):
        bind(front(tmp_path, SILENT))


def test_answers_are_held_where_the_engine_takes_grammars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.VARIABLE, "s")
    found = front(tmp_path, has_grammars=True)
    named = {"type": "function", "function": {"name": "turn_on"}}
    for fields in ({"tool_choice": "required"}, {"tool_choice": named}):
        bound = bind(found, **fields)
        assert bound.use is not None and "<tool_call>" in (bound.use.grammar or "")


def test_calls_of_whole_answers_and_of_streams_are_the_same(hermes: Frontend) -> None:
    bound = bind(hermes)

    def rewriter() -> ResponseRewriter:
        return ResponseRewriter("a", 3, calls=CallsOfAnswers(bound.use))

    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": ANSWER}}
    answer = rewriter().whole({"model": "x", "choices": [choice], "usage": usage})["choices"][0]
    [call] = answer["message"]["tool_calls"]
    assert answer["message"]["content"] == "so" and answer["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "turn_on", "arguments": '{"a": 1}'}

    deltas = [
        {"role": "assistant", "content": ""}, *({"content": one} for one in ANSWER),
        {"content": "", "tool_calls": None},
    ]  # fmt: skip
    events = streamed(rewriter(), deltas)
    told = [event["choices"][0] for event in events]
    assert told[0]["delta"] == {"role": "assistant"}
    assert "".join(one["delta"].get("content") or "" for one in told) == "so"
    calls = [one["delta"]["tool_calls"][0] for one in told if "tool_calls" in one["delta"]]
    assert [one["function"]["arguments"] for one in calls] == ["", '{"a": 1}']
    assert [one["finish_reason"] for one in told][-1] == "tool_calls"
    assert not any(one["finish_reason"] for one in told[:-1])


def streamed(rewriter: ResponseRewriter, deltas: list[Any]) -> list[Any]:
    async def given() -> Any:
        for number, delta in enumerate(deltas, 1):
            reason = "stop" if number == len(deltas) else None
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            yield f"data: {json.dumps({'model': 'x', 'choices': [choice]})}\n\n"

    async def all_of() -> list[str]:
        return [one async for one in rewriter.stream(given())]

    return [json.loads(one.removeprefix("data: ")) for one in asyncio.run(all_of())]
