"""`/v1/responses` by the official client, which validates what it reads: the chat's own answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny_models
from serving import END, VOCAB, config, expected, fill, running
from tiny_tokenizer import tiny_tokenizer
from tool_templates import HERMES

from foreword import Backbone
from foreword.errors import ModelError
from foreword.prompt.store import Store
from foreword.server import routes
from foreword.server.input_items import InputItem, messages_of
from foreword.server.server import Server
from foreword.server.streaming import Answers

ASKED: dict[str, Any] = {"model": "a", "input": "say yes", "temperature": 0}
USER: dict[str, Any] = {"role": "user", "content": "say yes"}
FORM: Any = {
    "type": "json_schema", "name": "x", "strict": True, "schema": {"enum": ["on", "off"]},
}  # fmt: skip
TOOL: dict[str, Any] = {
    "type": "function", "name": "turn_on", "description": "light", "strict": True,
    "parameters": {
        "type": "object", "properties": {"area": {"enum": ["hall"]}}, "required": ["area"],
        "additionalProperties": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory: Path = tmp_path_factory.mktemp("responses")
    model = tiny_models.build(
        "llama", vocab_size=VOCAB, eos_token_id=END, max_position_embeddings=1024
    )
    backbone = Backbone(model, tiny_tokenizer(chat_template=HERMES), name="tiny")
    store = Store(directory / "store")
    prompts = fill(store, backbone, directory)
    with (
        running(Server(backbone, store, config())) as address,
        openai.OpenAI(
            base_url=f"{address}/v1", api_key="any", max_retries=0,
            _strict_response_validation=True,
        ) as client,
    ):  # fmt: skip
        client.backbone, client.prompts = backbone, prompts  # type: ignore[attr-defined]
        yield client


def post(world: Any, **changes: Any) -> httpx.Response:
    return httpx.post(f"{world.base_url}responses", json=ASKED | changes, timeout=60)


def chat(world: Any, messages: Any, **options: Any) -> str:
    found = world.chat.completions.create(
        model="a", messages=messages, temperature=0, max_tokens=8, **options
    )
    return str(found.choices[0].message.content)


def test_an_answer_is_the_oracles(world: Any) -> None:
    found = world.responses.create(**ASKED, max_output_tokens=8)
    assert found.output_text == expected(world.backbone, world.prompts["a"], [USER], 8)
    assert found.status == "incomplete" and found.incomplete_details.reason == "max_output_tokens"
    assert found.usage.output_tokens == 8 and not found.store
    assert found.usage.total_tokens == found.usage.input_tokens + 8


CONVERSATIONS: list[tuple[Any, Any]] = [
    ([USER], [USER]),
    ([{"type": "message", "role": "user",
       "content": [{"type": "input_text", "text": "say yes"}]}], [USER]),
    ([USER, {"role": "assistant", "content": "yes"}, USER],
     [USER, {"role": "assistant", "content": "yes"}, USER]),
    ([USER, {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "yes", "annotations": []}]}, USER],
     [USER, {"role": "assistant", "content": "yes"}, USER]),
    ([USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
     [USER, {"role": "assistant", "refusal": "no"}, USER]),
    ([{"role": "developer", "content": "short"}, USER],
     [{"role": "developer", "content": "short"}, USER]),
    ([USER, {"role": "assistant", "content": "well"},
      {"type": "function_call", "call_id": "c1", "name": "turn_on", "arguments": "{}"},
      {"type": "function_call_output", "call_id": "c1", "output": "done"}],
     [USER, {"role": "assistant", "content": "well", "tool_calls": [
         {"id": "c1", "type": "function", "function": {"name": "turn_on", "arguments": "{}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "done"}]),
]  # fmt: skip


@pytest.mark.parametrize(("items", "messages"), CONVERSATIONS)
def test_items_are_the_turns_of_a_chat(world: Any, items: Any, messages: Any) -> None:
    found = world.responses.create(**ASKED | {"input": items}, max_output_tokens=8)
    assert found.output_text == chat(world, messages)


def test_instructions_are_the_first_system_turn(world: Any) -> None:
    found = world.responses.create(**ASKED, instructions="be short", max_output_tokens=8)
    assert found.output_text == chat(world, [{"role": "system", "content": "be short"}, USER])
    assert found.instructions == "be short"


@pytest.mark.parametrize(
    "options",
    [
        {"max_output_tokens": 7},
        {"text": {"format": FORM}},
        {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 30},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 5},
        {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 300},
        {
            "tools": [TOOL],
            "tool_choice": {"type": "function", "name": "turn_on"},
            "max_output_tokens": 20,
        },
    ],
)
def test_a_stream_says_what_the_whole_answer_says(world: Any, options: dict[str, Any]) -> None:
    whole = world.responses.create(**ASKED, **options)
    with world.responses.stream(**ASKED, **options) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == f"response.{whole.status}"
    told, text = events[-1].response, ""

    def plain(response: Any) -> Any:
        given = response.model_dump(exclude={"id", "created_at", "completed_at", "usage"})
        for item in given["output"]:
            item.pop("id"), item.pop("call_id", None)
            item.pop("parsed_arguments", None)
            for part in item.get("content", ()):
                part.pop("parsed", None)
        return given["output"], given["status"], given["text"], given["tools"]

    assert plain(told) == plain(whole)
    begun: dict[str, Any] = {}
    for event in events[2:-1]:
        if event.type == "response.output_item.added":
            begun[event.item.id] = []
        elif event.type == "response.output_item.done":
            item = event.item
            said = item.arguments if item.type == "function_call" else item.content[0].text
            assert "".join(begun.pop(item.id)) == said
        elif event.type.endswith(".delta"):
            begun[event.item_id].append(event.delta)
            text += event.delta
        else:
            assert event.item_id in begun
    assert not begun and text


def test_a_form_is_followed(world: Any) -> None:
    found = world.responses.create(**ASKED, text={"format": FORM})
    assert json.loads(found.output_text) in ("on", "off") and found.status == "completed"


def test_a_call_is_an_item_and_its_result_another(world: Any) -> None:
    asked = ASKED | {"tools": [TOOL]}
    found = world.responses.create(**asked, tool_choice="required", max_output_tokens=300)
    call = found.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments) == {"area": "hall"}
    items = [USER, *(item.model_dump(exclude_none=True) for item in found.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "done"})
    again = world.responses.create(**asked | {"input": items}, max_output_tokens=4)
    assert again.usage.input_tokens > found.usage.input_tokens


def test_logprobs_are_those_of_the_chat(world: Any) -> None:
    asked = ASKED | {"max_output_tokens": 5, "top_logprobs": 2}
    found = world.responses.create(**asked, include=["message.output_text.logprobs"])
    logprobs = found.output[0].content[0].logprobs
    same = world.chat.completions.create(
        model="a", messages=[USER], temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    theirs = same.choices[0].logprobs.content
    assert [one.logprob for one in logprobs] == pytest.approx([one.logprob for one in theirs])
    assert [len(one.top_logprobs) for one in logprobs] == [2] * 5


HARMLESS: dict[str, Any] = {
    "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "service_tier": "flex",
    "store": False, "background": False, "prompt_cache_key": "k", "truncation": "disabled",
    "prompt_cache_retention": "24h", "parallel_tool_calls": True, "tools": [], "seed": 3,
    "stream_options": {"include_obfuscation": False}, "include": ["reasoning.encrypted_content"],
    "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"summary": "auto"},
    "previous_response_id": None, "conversation": None, "top_logprobs": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_answer_is_accepted(world: Any, name: str) -> None:
    found = post(world, max_output_tokens=4, **{name: HARMLESS[name]})
    assert found.status_code == 200, found.text
    if name in ("metadata", "user", "safety_identifier", "prompt_cache_key"):
        assert found.json()[name] == HARMLESS[name]


REFUSED: list[tuple[str, Any]] = [
    ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("prompt", {"id": "p"}),
    ("background", True), ("store", True), ("max_tool_calls", 1), ("truncation", "auto"),
    ("reasoning", {"effort": "high"}), ("tools", [{"type": "web_search"}]), ("moderation", {}),
    ("tool_choice", {"type": "file_search"}), ("text", {"verbosity": "low"}),
    ("text", {"format": {"type": "json_schema", "name": "x"}}), ("input", []), ("input", None),
    ("input", [{"type": "item_reference", "id": "msg_1"}]),
    ("input", [{"type": "reasoning", "id": "rs_1", "summary": []}]),
    ("input", [USER | {"arguments": "{}"}]), ("input", [{"role": "user"}]),
    ("input", [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]),
    ("input", [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]),
    ("input", [{"role": "tool", "content": "x"}]), ("temperature", "1"), ("temperature", True),
    ("max_output_tokens", True), ("max_output_tokens", 0), ("stream", "yes"), ("n", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_would_change_an_answer_is_refused_by_name(world: Any, name: str, value: Any) -> None:
    found = post(world, **{name: value})
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert name in (error["param"] or "") + error["message"], error


def test_a_key_that_is_said_twice_is_refused(world: Any) -> None:
    body = b'{"model": "a", "input": "x", "text": {"format": null, "format": null}}'
    kind = {"content-type": "application/json"}
    for path, content in (
        ("responses", body),
        ("completions", b'{"model": "a", "prompt": "x", "seed": 1, "seed": 2}'),
    ):
        found = httpx.post(f"{world.base_url}{path}", content=content, headers=kind)
        assert found.status_code == 400 and "twice" in found.json()["error"]["message"]


def test_a_failure_under_way_is_the_last_event(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ModelError("the model failed")

    monkeypatch.setattr(Answers, "_piece", fail)
    found = post(world, stream=True)
    events = [line[7:] for line in found.text.splitlines() if line.startswith("event: ")]
    assert events == ["response.created", "response.in_progress", "response.failed"]
    assert "the model failed" in found.text and "[DONE]" not in found.text


KNOWS_EFFORT = "\n{{ reasoning_effort | default('medium') }}\n" + HERMES


@pytest.mark.parametrize("effort", ["low", "high"])
def test_a_template_that_knows_an_effort_is_given_it(
    world: Any, monkeypatch: pytest.MonkeyPatch, effort: str
) -> None:
    monkeypatch.setattr(world.backbone.tokenizer, "chat_template", KNOWS_EFFORT)
    asked: list[Any] = []
    real = routes.requests_of
    monkeypatch.setattr(
        routes, "requests_of", lambda *given: asked.extend(real(*given)) or asked[-1:]
    )
    world.responses.create(**ASKED, reasoning={"effort": effort}, max_output_tokens=1)
    chat(world, [USER], reasoning_effort=effort)
    world.responses.create(**ASKED, max_output_tokens=1)
    texts = [world.backbone.tokenizer.decode(one.ids) for one in asked]
    assert texts[0] == texts[1] == texts[2].replace("medium", effort, 1)
    assert texts[0].startswith(f"\n{effort}\n")


def test_text_behind_a_call_belongs_to_the_same_answer() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "ab"},
        call,
        {"role": "assistant", "content": [{"type": "output_text", "text": " and more"}]},
        call | {"call_id": "d"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"role": "assistant", "content": "done"},
    ]
    found = messages_of([InputItem.model_validate(item) for item in items])
    assert [turn["role"] for turn in found] == ["user", "assistant", "tool", "assistant"]
    assert found[1]["content"] == "ab and more"
    assert [one["id"] for one in found[1]["tool_calls"]] == ["c", "d"]
