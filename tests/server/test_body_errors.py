"""Errors of bodies: each line names the field, what was expected and what was got."""

import json
import re
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from foreword.server.bodies import validated
from foreword.server.body_errors import param_of
from foreword.server.protocol import ChatRequest, ClassifyRequest, CompletionRequest
from foreword.server.response_request import ResponseRequest

USER: dict[str, Any] = {"role": "user", "content": "say yes"}
WHOLE: dict[type[BaseModel], dict[str, Any]] = {
    ChatRequest: {"model": "a", "messages": [USER]},
    CompletionRequest: {"model": "a", "prompt": "hi"},
    ResponseRequest: {"model": "a", "input": "hi"},
    ClassifyRequest: {"model": "a", "prompt": "hi", "choices": ["on", "off"]},
}
THEIRS = re.compile(
    r"Input|input should|Extra|Field|List|Value error|String|Unable|validation|instance of"
)


def refused(kind: type[BaseModel], **changes: Any) -> tuple[str, str | None]:
    """Return the first line and the field of what a body is refused with."""
    body = {name: value for name, value in (WHOLE[kind] | changes).items() if value != "-"}
    with pytest.raises(RequestValidationError) as found:
        validated(kind, json.dumps(body).encode())
    first = found.value.errors()[0]
    return first["msg"], first["param"]


LINES: list[tuple[type[BaseModel], dict[str, Any], str]] = [
    (ChatRequest, {"max_tokes": 3}, "max_tokes: no such field; did you mean max_tokens?"),
    (ChatRequest, {"zzz": 3}, "zzz: no such field; GET /docs lists all"),
    (
        ChatRequest,
        {"messages": [USER | {"nam": "x"}]},
        "messages.0.nam: no such field; did you mean name?",
    ),
    (
        ChatRequest,
        {"stream": True, "stream_options": {"include_usag": True}},
        "stream_options.include_usag: no such field; did you mean include_usage?",
    ),
    (
        ResponseRequest,
        {"max_tokens": 3},
        "max_tokens: no such field; did you mean max_output_tokens?",
    ),
    (ChatRequest, {"model": "-"}, "model: the field is missing"),
    (ChatRequest, {"model": ""}, "model: expected at least 1 character, got 0"),
    (ChatRequest, {"model": "a" * 201}, "model: expected at most 200 characters, got 201"),
    (ChatRequest, {"messages": []}, "messages: expected at least 1, got 0"),
    (ChatRequest, {"messages": USER}, "messages: expected a list, got an object"),
    (ChatRequest, {"messages": ["hi"]}, "messages.0: expected an object, got a string"),
    (
        ChatRequest,
        {"messages": [USER | {"role": "usr"}]},
        "messages.0.role: expected 'system', 'developer', 'user', 'assistant' or 'tool', got 'usr'",
    ),
    (ChatRequest, {"temperature": "0"}, "temperature: expected a number, got a string"),
    (ChatRequest, {"temperature": -1}, "temperature: expected at least 0, got -1"),
    (ChatRequest, {"top_p": 0}, "top_p: expected more than 0, got 0"),
    (ChatRequest, {"n": 2.5}, "n: expected an integer, got 2.5"),
    (ChatRequest, {"n": True}, "n: expected an integer, got true"),
    (ChatRequest, {"n": 10**400}, "n: expected at most 128, got a number of many digits"),
    (ChatRequest, {"stream": "yes"}, "stream: expected true or false, got a string"),
    (ChatRequest, {"stop": 7}, "stop: expected a text or a list of texts, got a number"),
    (ChatRequest, {"stop": ["x"] * 9}, "stop: expected at most 8, got 9"),
    (ChatRequest, {"logit_bias": {"5": "1"}}, "logit_bias: 5: expected a number, got a string"),
    (ClassifyRequest, {"choices": ["a"]}, "choices: expected at least 2, got 1"),
    (ClassifyRequest, {"choices": ["a", "a"]}, "choices: each answer once"),
    (ChatRequest, {"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
    (CompletionRequest, {"prompt": [-1]}, "prompt.0: expected at least 0, got -1"),
    (
        CompletionRequest,
        {"prompt": {}},
        "prompt: expected a text, a list of texts, ids, or a list of lists of ids, got an object",
    ),
    (
        ResponseRequest,
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
        "input: turn 1 is of role 'tool': the turn before it calls no tools",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "line"), LINES)
def test_a_line_says_field_expected_and_got(
    kind: type[BaseModel], changes: dict[str, Any], line: str
) -> None:
    said, param = refused(kind, **changes)
    assert said == line
    assert param == re.split(r": | needs", line)[0]


WRONG: list[Any] = [
    [], {}, "", "x", "x" * 300_000, True, -1, 2.5, 1e300, 10**400, [[]], [{}], {"a": {}}, ["x", 1],
    [1, "x"], ["x"] * 2000, {str(number): number for number in range(2000)},
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in WHOLE for name in kind.model_fields]
)
def test_no_line_is_in_pydantics_words(kind: type[BaseModel], name: str) -> None:
    for value in WRONG:
        body = WHOLE[kind] | {name: value}
        try:
            validated(kind, json.dumps(body).encode())
        except RequestValidationError as found:
            for one in found.errors():
                assert not THEIRS.search(one["msg"]) and "\n" not in one["msg"], one
                assert len(one["msg"]) < 300, one


def test_the_field_of_a_line_is_one_of_the_body() -> None:
    assert param_of("choices[1]: not one", ClassifyRequest) == "choices[1]"
    assert param_of("max_tokens is 3 and ...", ChatRequest) == "max_tokens"
    for line in ("llama: no cache", "give either prompt or messages", "text 2 is empty"):
        assert param_of(line, ClassifyRequest) is None
    assert param_of("choices: each answer once", None) is None
