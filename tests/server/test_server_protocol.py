"""Bodies: null is left out, JSON types are not converted, and what is huge is refused cheaply."""

import json
import threading
import types
import typing
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import chat as openai_chat
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat_completion
from pydantic import BaseModel, ValidationError
from serving import asked

from foreword.server import bodies
from foreword.server.protocol import ChatRequest, CompletionRequest, NameRequest, TokenizeRequest
from foreword.server.response_request import ResponseRequest

USER: dict[str, Any] = {"role": "user", "content": "say yes"}
CHAT: dict[str, Any] = {
    "model": "a", "messages": [USER], "max_tokens": 4, "temperature": 0, "seed": 1,
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    "model": "a", "prompt": "hi", "max_tokens": 4, "temperature": 0, "seed": 1,
}  # fmt: skip
JSON_KIND = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with asked(tmp_path_factory.mktemp("protocol")) as made:
        yield made


def chat(client: httpx.Client, **changes: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=CHAT | changes)


def completion(client: httpx.Client, **changes: Any) -> httpx.Response:
    return client.post("/v1/completions", json=COMPLETION | changes)


# What is huge -----------------------------------------------------------------------------------

MANY = 5000  # more than any list or map of a body may hold, but for ids
FEW = 6  # errors; some are of fields that a body of this test leaves out
HUGE: dict[str, Any] = {
    "numbers": [-1] * MANY,
    "texts": [""] * MANY,
    "lists": [[-1]] * MANY,
    "maps": [{"role": "user", "content": "x", "type": "text", "text": "x"}] * MANY,
    "nulls": [None] * MANY,
    "map": {str(index): "x" for index in range(MANY)},
    "nested map": {str(index): {"x": [1]} for index in range(MANY)},
    "number": 10**400,
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)


def places_of(kind: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in kind.model_fields.items():
        place = (*before, field.alias or name)
        yield place
        for inner in models_in(field.annotation):
            yield from places_of(inner, place)


LISTS = ("messages", "content", "tools", "tool_calls", "input", "output")


def body_with(kind: type[BaseModel], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a body of a kind that holds a value at a place."""
    for index, name in reversed(list(enumerate(place))):
        value = {name: value}
        if index and place[index - 1] in LISTS:
            value = [value]
    whole = {"model": "a", "prompt": "hi", "messages": [USER], "name": "a", "input": "hi"}
    return {name: one for name, one in whole.items() if name in kind.model_fields} | value


PLACES = [
    (kind, place)
    for kind in (ChatRequest, CompletionRequest, ResponseRequest, TokenizeRequest, NameRequest)
    for place in places_of(kind)
]


def test_the_places_are_found() -> None:
    assert (ChatRequest, ("messages", "content", "image_url", "url")) in PLACES
    assert (ResponseRequest, ("input", "content", "input_audio", "data")) in PLACES
    assert (CompletionRequest, ("response_format", "json_schema", "schema")) in PLACES


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_a_huge_value_of_any_field_is_refused_with_a_few_errors(
    kind: type[BaseModel], place: tuple[str, ...]
) -> None:
    for value in HUGE.values():
        with pytest.raises(ValidationError) as found:
            kind.model_validate(body_with(kind, place, value))
        assert found.value.error_count() <= FEW


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_many_unknown_fields_are_one_error(kind: type[BaseModel], place: tuple[str, ...]) -> None:
    unknown = {f"made up {index}": index for index in range(MANY)}
    body = body_with(kind, place[:-1], unknown) if place[1:] else unknown
    with pytest.raises(ValidationError) as found:
        kind.model_validate(body)
    assert found.value.error_count() <= FEW


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "prompt": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"model": "a", "prompt": "hi", "metadata": ' + b'{"a":' * 300 + b"1" + b"}" * 301,
        b'{"model": "a", "prompt": "hi", "seed": NaN}',
        b'{"model": "a", "prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "a", "prompt": "hi", "top_p": 1e999}',
        json.dumps(COMPLETION).encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_bounded_json_is_refused(client: httpx.Client, body: bytes) -> None:
    found = client.post("/v1/completions", content=body, headers=JSON_KIND)
    assert found.status_code == 400 and len(found.json()["error"]["message"]) < 1100


def test_probes_are_answered_while_a_large_body_is_read(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on, real = threading.Event(), threading.Event(), bodies.from_json

    def slow(content: bytes, **options: Any) -> Any:
        begun.set()
        assert may_go_on.wait(30)
        return real(content, **options)

    monkeypatch.setattr(bodies, "from_json", slow)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(completion(client, prompt=[-1] * 50_000).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert begun.wait(30)
        assert client.get("/health").status_code == 200
    finally:
        may_go_on.set()
        asking.join(30)
    assert statuses == [400]


# Null -------------------------------------------------------------------------------------------


def optional_in(kind: Any) -> list[str]:
    """Return the fields of the official client's own types that take None."""
    hints = typing.get_type_hints(kind)
    return sorted(
        name for name, hint in hints.items()
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        if type(None) in typing.get_args(hint)
    )  # fmt: skip


CHAT_FIELDS = optional_in(openai_chat_completion.CompletionCreateParamsNonStreaming)
COMPLETION_FIELDS = optional_in(openai_completion.CompletionCreateParamsNonStreaming)
OURS = ["response_format", "ignore_eos", "top_k", "min_p", "repetition_penalty", "tools", "user"]


@pytest.mark.parametrize("name", [*CHAT_FIELDS, *OURS])
def test_a_chats_null_is_a_field_left_out(client: httpx.Client, name: str) -> None:
    without = {key: value for key, value in CHAT.items() if key != name}
    left_out = client.post("/v1/chat/completions", json=without)
    as_null = client.post("/v1/chat/completions", json=without | {name: None})
    assert as_null.status_code == left_out.status_code == 200, as_null.text
    assert as_null.json()["choices"] == left_out.json()["choices"]


@pytest.mark.parametrize("name", [*COMPLETION_FIELDS, *OURS])
def test_a_completions_null_is_a_field_left_out(client: httpx.Client, name: str) -> None:
    without = {key: value for key, value in COMPLETION.items() if key != name}
    left_out = client.post("/v1/completions", json=without)
    as_null = client.post("/v1/completions", json=without | {name: None})
    assert as_null.status_code == left_out.status_code == (400 if name == "prompt" else 200)
    assert as_null.json().get("choices") == left_out.json().get("choices")


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        (openai_chat.ChatCompletionAssistantMessageParam, "assistant"),
        (openai_chat.ChatCompletionUserMessageParam, "user"),
        (openai_chat.ChatCompletionSystemMessageParam, "system"),
    ],
)
def test_a_turns_null_is_a_field_left_out(client: httpx.Client, kind: Any, role: str) -> None:
    fields = set(typing.get_type_hints(kind)) - {"role", "content"}
    turn = {"role": role, "content": "x"} | dict.fromkeys(fields)
    assert chat(client, messages=[turn, USER]).status_code == 200
    part = {"type": "text", "text": "say yes", "image_url": None, "cache_control": None}
    asked = chat(client, messages=[USER | {"content": [part]}])
    assert asked.json()["choices"] == chat(client).json()["choices"]


def test_null_inside_of_a_field_is_left_out_too(client: httpx.Client) -> None:
    options = {"include_usage": None, "include_obfuscation": None}
    assert chat(client, stream=True, stream_options=options).status_code == 200
    schema = {"name": "x", "schema": {"const": None}, "strict": None, "description": None}
    form = {"type": "json_schema", "json_schema": schema}
    found = chat(client, response_format=form).json()["choices"][0]["message"]["content"]
    assert found == "null", "in a schema null is a value"


def test_an_answer_of_the_official_client_is_a_turn(client: httpx.Client) -> None:
    messages: list[Any] = [USER]
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as official:
        for _ in range(2):
            answer = official.chat.completions.create(model="a", messages=messages, max_tokens=3)
            messages += [answer.choices[0].message.model_dump(), USER]
    assert len(messages) == 5


# JSON types -------------------------------------------------------------------------------------

LAX = [
    ("n", "2"), ("n", 2.0), ("n", True), ("seed", 1.0), ("seed", "1"), ("max_tokens", 4.0),
    ("max_tokens", "4"), ("top_k", 3.0), ("temperature", "0"), ("temperature", True),
    ("top_p", True), ("min_p", "0.1"), ("stream", "false"), ("stream", 0), ("ignore_eos", "no"),
    ("presence_penalty", False), ("frequency_penalty", "0"), ("repetition_penalty", "1"),
    ("logit_bias", {"5": "1"}), ("logit_bias", {"5": True}), ("logit_bias", {" 5": 1}),
    ("logit_bias", {"0_5": 1}), ("logit_bias", {"05": 1}), ("logit_bias", {"٥": 1}),
    ("logit_bias", [[5, 1]]), ("stop", 7), ("stop", [7]), ("stop", {"a": 1}), ("user", 7),
    ("stream_options", {"include_usage": 1}), ("model", 7),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), LAX)
def test_a_value_of_another_json_type_is_refused_by_its_field(
    client: httpx.Client, name: str, value: Any
) -> None:
    for found in (chat(client, **{name: value}), completion(client, **{name: value})):
        assert found.status_code == 400, found.text
        error = found.json()["error"]
        assert name in error["message"] and error["param"].startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("logprobs", 1), ("logprobs", "true"), ("top_logprobs", "1"), ("store", "yes"),
     ("metadata", {"a": 1}), ("max_completion_tokens", 4.0), ("messages", {"role": "user"})],
)  # fmt: skip
def test_a_chats_value_of_another_json_type_is_refused(
    client: httpx.Client, name: str, value: Any
) -> None:
    found = chat(client, **{name: value})
    assert found.status_code == 400 and found.json()["error"]["param"].startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", [True]), ("prompt", [1.0]), ("prompt", ["1", 2]), ("prompt", [[True]]),
     ("prompt", [[1], "x"]), ("prompt", {"a": 1}), ("prompt", 5), ("prompt", []),
     ("prompt", [[]]), ("logprobs", True), ("logprobs", 1.0), ("echo", 1), ("best_of", True),
     ("best_of", 1.0)],
)  # fmt: skip
def test_a_completions_value_of_another_json_type_is_refused(
    client: httpx.Client, name: str, value: Any
) -> None:
    found = completion(client, **{name: value})
    param = found.json()["error"]["param"]
    assert found.status_code == 400 and param.partition(".")[0] == name and "(" not in param


# Turns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool", "assistant"])
@pytest.mark.parametrize(
    "turn", [{}, {"content": None}, {"content": []}, {"content": [None]}, {"content": {}}]
)
def test_a_turn_without_content_is_not_read_as_an_empty_one(
    client: httpx.Client, role: str, turn: dict[str, Any]
) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/tokenize", {"model": "a"})):
        found = client.post(path, json=body | {"messages": [{"role": role, **turn}, USER]})
        assert found.status_code == 400 and "content" in found.text, found.text


def test_tool_calls_that_the_template_does_not_show_are_refused(client: httpx.Client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    found = chat(client, messages=[USER, turn, USER])
    assert found.status_code == 400
    assert "message 2: the chat template shows no calls of tools" in found.text


def test_a_refused_answer_is_its_text(client: httpx.Client) -> None:
    def ids(turn: dict[str, Any]) -> Any:
        body = {"model": "a", "messages": [USER, {"role": "assistant"} | turn, USER]}
        return client.post("/tokenize", json=body).json().get("tokens")

    said = ids({"content": "no, I will not"})
    assert said and ids({"refusal": "no, I will not", "content": None}) == said
    assert ids({"refusal": "no, I will not", "content": "yes"}) is None, "which of both?"
    assert chat(client, messages=[USER | {"refusal": "no"}]).status_code == 400
