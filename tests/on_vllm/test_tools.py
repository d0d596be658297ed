"""Tools behind a prompt that has a chat template of its own, which the base's tokenizer lacks."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import served
from tool_templates import HERMES

from foreword import Backbone, EncodingConfig, SoftPrompt
from foreword.data.encoding import encode_prompt
from foreword.prompt.store import Store

SCHEMA = {
    "type": "object", "properties": {"area": {"enum": ["hall", "attic"]}}, "required": ["area"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "turn_on", "parameters": SCHEMA}}
CALL = {"id": "a", "type": "function", "function": {"name": "turn_on", "arguments": "{}"}}
TURNS: list[Any] = [
    {"role": "user", "content": "lamp"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "done", "tool_call_id": "a"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    tmp = tmp_path_factory.mktemp("tools")
    model = served.build()
    directory = served.save(model, tmp / "model")
    backbone, store = Backbone(model, served.TOKENIZER, name="tiny"), Store(tmp / "store")
    plain = served.prompt(backbone, "embeddings", 8)
    facts = plain.facts | {"encoding": {"chat_template": HERMES}}
    prompt = SoftPrompt.from_embeddings(plain.embeddings, facts=facts)
    served.add(store, "home", prompt, tmp)
    with served.serving(directory, store.directory, tmp / "log") as url:
        yield SimpleNamespace(url=f"{url}/v1/chat/completions", model=model, prompt=prompt)


def body(**fields: Any) -> dict[str, Any]:
    given = {"model": "home", "messages": TURNS, "tools": [TOOL], "temperature": 0}
    return given | {"max_tokens": 120} | fields


def test_tools_are_shown_by_the_prompts_own_template(server: Any) -> None:
    ids = encode_prompt(TURNS, served.TOKENIZER, EncodingConfig(chat_template=HERMES), tools=[TOOL])
    wanted = served.expected(server.model, server.prompt, ids, 12)
    fields = {"max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    status, answer = served.post(server.url, body(**fields))
    assert status == 200, answer
    assert answer["prompt_token_ids"] == ids and answer["choices"][0]["token_ids"] == wanted


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "turn_on"}}]
)
def test_a_call_is_held_to_its_schema_whole_and_streamed(server: Any, choice: Any) -> None:
    asked = body(tool_choice=choice, parallel_tool_calls=False)
    status, answer = served.post(server.url, asked)
    assert status == 200, answer
    [found] = answer["choices"]
    [call] = found["message"]["tool_calls"]
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
    assert call["function"]["name"] == "turn_on"
    assert json.loads(call["function"]["arguments"])["area"] in ("hall", "attic")
    told = [event["choices"][0] for event in served.stream(server.url, asked)]
    parts = [one["delta"]["tool_calls"][0] for one in told if "tool_calls" in one["delta"]]
    assert parts[0]["function"]["name"] == "turn_on" and told[-1]["finish_reason"] == "tool_calls"
    assert "".join(one["function"]["arguments"] for one in parts) == call["function"]["arguments"]


def test_a_form_beside_tools_is_refused(server: Any) -> None:
    status, answer = served.post(server.url, body(response_format={"type": "json_object"}))
    assert status == 400 and "response_format beside tools" in answer["error"]["message"]
