"""Results of tools in a conversation: each is of the call that its id names, or refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from foreword.server.body_errors import problem_of
from foreword.server.protocol import ChatRequest
from foreword.server.response_request import ResponseRequest

USER = {"role": "user", "content": "lamp"}
TOOL = {"type": "function", "function": {"name": "on", "parameters": {"type": "object"}}}


def called(*ids: str) -> dict[str, Any]:
    function = {"name": "on", "arguments": "{}"}
    calls = [{"id": one, "type": "function", "function": function} for one in ids]
    return {"role": "assistant", "tool_calls": calls}


def result(call_id: str | None, text: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "a", "messages": [USER, *messages], **fields})


def refusal(*messages: Any, **fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        chat(*messages, **fields)
    return problem_of(caught.value.errors()[0], ChatRequest)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([result("a")], "turn 2 is of role 'tool': the turn before it calls no tools"),
        ([called("a"), USER, result("a")], "turn 4 is of role 'tool'"),
        ([called("a"), result("b")], "turn 3: tool_call_id 'b' is of none of the calls before"),
        ([called("a", "b"), result("a"), result("a")], "turn 4: a second result of the call 'a'"),
        ([called("a"), result(None), result(None)], "turn 4: a result more than there are calls"),
        ([called("a", "b"), result("a"), result(None)], "turn 4: tool_call_id is missing"),
        ([called("a", "a"), result("a")], "two calls have the id 'a'"),
    ],
)
def test_a_result_of_no_call_is_refused(messages: list[Any], words: str) -> None:
    assert words in refusal(*messages)


def test_results_stand_in_the_order_of_their_calls() -> None:
    turns = [
        called("a", "b"),
        result("b", "two"),
        result("a", "one"),
        USER,
        called("a"),
        result("a"),
    ]
    found = chat(*turns).messages
    assert [one.content for one in found] == [
        "lamp", None, "one", "two", "lamp", None, "done",
    ]  # fmt: skip
    plain = chat(called("a", "b"), result(None, "one"), result(None, "two")).messages
    assert [one.content for one in plain[2:]] == ["one", "two"]
    assert len(chat(called("a"), USER).messages) == 3  # a call that nobody answers


def test_responses_are_read_alike() -> None:
    item = {"type": "function_call_output", "call_id": "b", "output": "done"}
    with pytest.raises(ValidationError, match="turn 2 is of role 'tool'"):
        ResponseRequest.model_validate({"model": "a", "input": [USER, item]})


def test_a_streams_own_notes_come_back_with_a_turn_and_are_not_shown() -> None:
    turn = called("a") | {"annotations": [], "audio": None, "function_call": None}
    turn["tool_calls"][0]["index"] = 0
    shown = chat(turn, result("a")).messages[1].turn()
    assert shown == {"role": "assistant", "content": "", "tool_calls": called("a")["tool_calls"]}


def test_arguments_that_are_no_object_are_refused() -> None:
    tool = {"type": "function", "function": {"name": "on", "parameters": {"type": "string"}}}
    assert "tools.0.function: parameters: expected a schema of an object" in refusal(tools=[tool])


def test_two_limits_that_differ_are_refused() -> None:
    assert chat(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert refusal(max_tokens=5, max_completion_tokens=3) == (
        "max_tokens is 5 and max_completion_tokens 3: give one of them"
    )


def test_an_error_of_a_whole_body_names_its_field_alone() -> None:
    assert refusal(tools=[TOOL, TOOL]) == "tools: two are called 'on': rename one"
