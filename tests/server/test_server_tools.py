"""Tools, by the official client: shown by the template, called, streamed, forced, and answered."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny_models
import torch
from serving import END, VOCAB, config, fill, running
from tiny_tokenizer import CHATML, tiny_tokenizer
from tool_templates import HERMES, RESPONSE, SILENT, TEMPLATES

from foreword import Backbone
from foreword.prompt.store import Store
from foreword.server import routes
from foreword.server.server import Server
from foreword.server.tools import MAX_TOOLS, MAX_TOOLS_BYTES

USER: Any = [{"role": "user", "content": "lamp"}]
SCHEMA = {
    "type": "object",
    "properties": {"area": {"enum": ["hall", "attic"]}, "level": {"type": "integer"}},
    "required": ["area"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "turn_on", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
HALL = {"name": "turn_on", "arguments": {"area": "hall"}}
NOW: dict[str, Any] = {"name": "now", "arguments": {}}


class Scripted:
    """A grammar that allows one text alone, in the place of a model that would say it."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = [*ids, END]

    def allowed(self) -> torch.Tensor:
        return torch.arange(VOCAB) == self.ids[0]

    def accept(self, chosen_id: int) -> bool:
        self.ids.pop(0)
        return not self.ids


class World:
    """A server for each template, and what its next answers say."""

    def __init__(self, directory: Path, template: str, response: Any = None) -> None:
        self.tokenizer = tiny_tokenizer(chat_template=template)
        self.tokenizer.response_template = response
        model = tiny_models.build(
            "llama", vocab_size=VOCAB, eos_token_id=END, max_position_embeddings=1024
        )
        self.backbone = Backbone(model, self.tokenizer, name="tiny")
        store = Store(directory / "store")
        fill(store, self.backbone, directory, "a")
        self.server = Server(self.backbone, store, config())
        self.said: str | None = None
        self.asked = ""

    def requests(self, *arguments: Any) -> Any:
        found = REQUESTS_OF(*arguments)
        self.asked = self.tokenizer.decode(found[0].ids)
        if self.said is None:
            return found
        ids = self.tokenizer(self.said, add_special_tokens=False)["input_ids"]
        return [replace(one, constraint=Scripted(list(ids))) for one in found]

    def ask(self, **options: Any) -> Any:
        given = {"model": "a", "messages": USER, "tools": TOOLS, "temperature": 0} | options
        return self.client.chat.completions.create(max_tokens=300, **given)

    def spell(self, *calls: dict[str, Any], text: str = "") -> str:
        """Return an answer as the template writes it."""
        made = [
            {"id": f"abcdefgh{number}", "type": "function", "function": call}
            for number, call in enumerate(calls)
        ]
        turn = {"role": "assistant", "content": text, "tool_calls": made}
        whole = self.tokenizer.apply_chat_template([*USER, turn], tokenize=False)
        assert isinstance(whole, str)
        return whole.rpartition("assistant\n")[2].removesuffix("<|im_end|>\n")


REQUESTS_OF = routes.requests_of
ODD = HERMES.replace("c.function.arguments | tojson", "c.function.arguments | string")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, World]]:
    made: dict[str, World] = {}
    with pytest.MonkeyPatch.context() as patch:
        stack = []
        others = {"silent": SILENT, "plain": CHATML, "response": HERMES, "odd": ODD}
        for name, template in {**TEMPLATES, **others}.items():
            response = RESPONSE if name in ("response", "odd") else None
            world = made[name] = World(tmp_path_factory.mktemp(name), template, response)
            context = running(world.server)
            world.client = openai.OpenAI(  # type: ignore[attr-defined]
                base_url=f"{context.__enter__()}/v1", api_key="any", max_retries=0
            )
            stack.append(context)
        patch.setattr(routes, "requests_of", lambda *given: _of(made, given[0]).requests(*given))
        yield made
        for context in stack:
            context.__exit__(None, None, None)


def _of(worlds: dict[str, World], state: Any) -> World:
    return next(one for one in worlds.values() if one.server.worker is state.worker)


@pytest.fixture(params=[*TEMPLATES])
def world(worlds: dict[str, World], request: pytest.FixtureRequest) -> World:
    found = worlds[request.param]
    found.said = None
    return found


def calls_of(message: Any) -> list[dict[str, Any]]:
    return [
        {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
        for call in message.tool_calls or []
    ]


def test_a_call_in_an_answer_is_a_tool_call(world: World) -> None:
    world.said = world.spell(HALL)
    choice = world.ask().choices[0]
    assert calls_of(choice.message) == [HALL] and choice.message.content is None
    assert choice.finish_reason == "tool_calls"
    assert re.fullmatch("[A-Za-z0-9]{9}", choice.message.tool_calls[0].id)
    assert '"turn_on"' in world.asked and '"now"' in world.asked


def test_a_streams_deltas_make_the_same_message(world: World) -> None:
    world.said = world.spell(HALL)
    with world.client.chat.completions.stream(  # type: ignore[attr-defined]
        model="a", messages=USER, tools=TOOLS, temperature=0, max_tokens=300
    ) as stream:
        kinds = {event.type for event in stream}
        found = stream.get_final_completion().choices[0]
    assert calls_of(found.message) == [HALL] and found.finish_reason == "tool_calls"
    assert "tool_calls.function.arguments.done" in kinds
    chunks = [chunk.choices[0] for chunk in world.ask(stream=True)]
    named, argued = (one.delta.tool_calls[0] for one in chunks if one.delta.tool_calls)
    assert (named.index, named.function.name, named.function.arguments) == (0, "turn_on", "")
    assert named.id and argued.id is None and json.loads(argued.function.arguments)
    assert not any(one.delta.content for one in chunks)


def test_several_calls_keep_their_order(world: World, worlds: dict[str, World]) -> None:
    if world is worlds["llama"]:
        pytest.skip("this template writes one call")
    world.said = world.spell(HALL, NOW)
    assert calls_of(world.ask().choices[0].message) == [HALL, NOW]
    deltas = [c.choices[0].delta.tool_calls or [] for c in world.ask(stream=True)]
    told = [call for delta in deltas for call in delta]
    assert [call.index for call in told] == [0, 0, 1, 1]
    assert [call.function.name for call in told] == ["turn_on", None, "now", None]
    assert len({call.id for call in told if call.id}) == 2


@pytest.mark.parametrize("fault", [HALL | {"name": "explode"}, "cut", "text"])
def test_what_is_no_call_stays_text(world: World, fault: Any) -> None:
    whole = world.spell(fault if isinstance(fault, dict) else HALL)
    world.said = {"cut": whole[:-6], "text": "So {what} <tool_call> is this?"}.get(
        str(fault), whole
    )
    shown = world.said.removeprefix("<|bos|>")
    for stream in (False, True):
        found = world.ask(stream=stream)
        if stream:
            choices = [chunk.choices[0] for chunk in found]
            told = "".join(one.delta.content or "" for one in choices)
            assert not any(one.delta.tool_calls for one in choices)
            reason = choices[-1].finish_reason
        else:
            told, reason = found.choices[0].message.content, found.choices[0].finish_reason
            assert found.choices[0].message.tool_calls is None
        assert told.removeprefix("<|bos|>") == shown and reason == "stop"


def test_text_before_a_call_is_the_content(worlds: dict[str, World]) -> None:
    world = worlds["hermes"]
    world.said = world.spell(HALL, text="Wait.")
    found = world.ask().choices[0].message
    assert found.content == "Wait." and calls_of(found) == [HALL]
    chunks = [chunk.choices[0].delta for chunk in world.ask(stream=True)]
    assert "".join(one.content or "" for one in chunks) == "Wait."


def test_a_response_template_tells_reasoning_text_and_calls_apart(
    worlds: dict[str, World],
) -> None:
    world = worlds["response"]
    world.said = f"<think>Hm.</think>\nWait.\n{world.spell(HALL)}"
    choice = world.ask().choices[0]
    message = choice.message
    assert (message.content, message.reasoning_content) == ("Wait.", "Hm.")
    assert calls_of(message) == [HALL] and choice.finish_reason == "tool_calls"
    deltas = [chunk.choices[0].delta for chunk in world.ask(stream=True)]
    thought = "".join(getattr(one, "reasoning_content", None) or "" for one in deltas)
    assert ("".join(one.content or "" for one in deltas), thought) == ("Wait.", "Hm.")
    assert [call.function.name for one in deltas for call in one.tool_calls or []][0] == "turn_on"
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "on"}
    world.said = "<think>So.</think>Done."
    for options in ({}, {"tools": []}, {"tool_choice": "none"}):
        found = world.ask(messages=[*USER, message.to_dict(), result], **options).choices[0]
        assert (found.message.content, found.message.reasoning_content) == ("Done.", "So.")
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    told = world.client.responses.create(model="a", input="lamp", tools=tools)
    assert told.output_text == world.said, "which has no place for reasoning"


def test_a_response_template_reads_calls_of_any_form(worlds: dict[str, World]) -> None:
    world = worlds["odd"]
    world.said = worlds["hermes"].spell(HALL)
    assert calls_of(world.ask().choices[0].message) == [HALL]
    for options in ({"tool_choice": "required"}, {"parallel_tool_calls": False}):
        with pytest.raises(openai.BadRequestError, match="the chat template writes calls in a"):
            world.ask(**options)


# Choices ------------------------------------------------------------------------------------------


def follows(call: dict[str, Any]) -> bool:
    if call["name"] == "now":
        return bool(call["arguments"] == {})
    arguments = call["arguments"]
    return arguments["area"] in ("hall", "attic") and set(arguments) <= {"area", "level"}


def test_a_required_call_follows_a_schema(world: World) -> None:
    for seed in range(3):
        choice = world.ask(
            tool_choice="required", parallel_tool_calls=False, temperature=1, seed=seed
        ).choices[0]
        [call] = calls_of(choice.message)
        assert follows(call) and choice.message.content is None
        assert choice.finish_reason == "tool_calls"


def test_a_named_tool_is_called(world: World) -> None:
    for name in ("now", "turn_on"):
        choice = {"type": "function", "function": {"name": name}}
        for stream in (False, True):
            found = world.ask(tool_choice=choice, temperature=1, seed=4, stream=stream)
            if stream:
                deltas = [c.choices[0].delta.tool_calls or [] for c in found]
                named, argued = (call.function for delta in deltas for call in delta)
                call = {"name": named.name, "arguments": json.loads(argued.arguments)}
            else:
                [call] = calls_of(found.choices[0].message)
            assert call["name"] == name and follows(call)


def test_required_calls_may_be_several(worlds: dict[str, World]) -> None:
    world = worlds["mistral"]
    world.said = None
    found = [
        world.ask(tool_choice="required", temperature=1, seed=seed).choices[0] for seed in range(3)
    ]
    whole = [choice for choice in found if choice.finish_reason == "tool_calls"]
    counts = {len(calls_of(choice.message)) for choice in whole}
    assert whole and max(counts) > 1
    assert all(follows(call) for choice in whole for call in calls_of(choice.message))


def test_none_shows_no_tools_and_reads_none(worlds: dict[str, World]) -> None:
    world = worlds["hermes"]
    world.said = world.spell(HALL)
    choice = world.ask(tool_choice="none").choices[0]
    assert choice.message.tool_calls is None and choice.message.content == world.said
    assert "turn_on" not in world.asked and choice.finish_reason == "stop"


def test_a_strict_tool_is_called_as_its_schema_says_or_not_at_all(
    worlds: dict[str, World],
) -> None:
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    world = worlds["hermes"]
    world.said = None
    bias = {str(token): 100 for token in world.tokenizer("<")["input_ids"]}
    for options in ({}, {"logit_bias": bias}, {"parallel_tool_calls": False}):
        found = world.ask(tools=strict, temperature=1, seed=3, **options).choices[0]
        assert all(follows(call) for call in calls_of(found.message))
        assert "<tool_call>" not in (found.message.content or "")


def test_an_answer_is_of_the_format_or_a_call(worlds: dict[str, World]) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    world = worlds["hermes"]
    world.said = None
    for seed in range(2):
        found = world.ask(response_format=form, temperature=1, seed=seed).choices[0]
        calls = calls_of(found.message)
        assert found.message.content == "{}" if not calls else all(map(follows, calls))


# The conversation ---------------------------------------------------------------------------------


def test_an_answers_calls_and_their_results_go_back(world: World) -> None:
    world.said = world.spell(HALL)
    message = world.ask().choices[0].message
    world.said = "Done."
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "on since 9"}
    turns = [*USER, message.to_dict(), result]
    assert world.ask(messages=turns).choices[0].message.content == "Done."
    said = world.spell(HALL)
    # A call's id is its own; all else stands in the next request as it was said.
    shown = re.sub('"id": "[A-Za-z0-9]{9}"', '"id": "abcdefgh0"', world.asked)
    assert f"<|im_start|>assistant\n{said}<|im_end|>\n" in shown
    assert "<|im_start|>tool\non since 9<|im_end|>\n" in shown


def test_tokens_are_counted_as_the_conversation_reads_them(world: World) -> None:
    world.said = world.spell(HALL)
    message = world.ask().choices[0].message.to_dict()
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "on"}
    begun = {"role": "assistant", "content": "It is"}
    for options in (
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": TOOLS, "messages": [*USER, message, result]},
        {"messages": [*USER, begun], "continue_final_message": True},
    ):  # type: dict[str, Any]
        body = {"model": "a", "messages": USER} | options
        told = world.client.post("/../tokenize", body=body, cast_to=dict[str, Any])
        given = {"tools": []} | body
        extra = {name: given.pop(name) for name in ("continue_final_message",) if name in given}
        usage = world.ask(**given, extra_body=extra).usage
        assert told["count"] == len(told["tokens"]) == usage.prompt_tokens
        assert world.tokenizer.decode(told["tokens"]) == world.asked


# What is refused ----------------------------------------------------------------------------------


def test_tools_of_a_plain_text_are_not_counted(worlds: dict[str, World]) -> None:
    client = worlds["hermes"].client
    with pytest.raises(openai.BadRequestError, match="tools goes with messages"):
        body = {"model": "a", "prompt": "hi", "tools": TOOLS}
        client.post("/../tokenize", body=body, cast_to=dict[str, Any])


@pytest.mark.parametrize(
    ("template", "options", "expected"),
    [
        ("plain", {}, "the chat template shows no"),
        ("silent", {}, "the chat template shows no calls of tools"),
        ("hermes", {"tools": [TOOLS[0]] * 2}, "two are called 'turn_on'"),
        ("hermes", {"tool_choice": "any"}, "'none', 'auto' or 'required'"),
        (
            "hermes",
            {"tool_choice": {"type": "function", "function": {"name": "x"}}},
            "no tool is called 'x'",
        ),
        ("hermes", {"tools": [], "tool_choice": "required"}, "required needs tools"),
        ("hermes", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "pattern"),
        (
            "hermes",
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}
                ],
                "tool_choice": "required",
            },
            r"^Error code: 400 - tools\.0\.function\.parameters: type: expected the name of a type",
        ),
        (
            "hermes",
            {"messages": [*USER, {"role": "assistant", "content": None}]},
            "content is missing",
        ),
        (
            "hermes",
            {"messages": [USER[0] | {"tool_call_id": "x"}]},
            "tool_call_id is for a turn of role 'tool'",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    worlds: dict[str, World], template: str, options: dict[str, Any], expected: str
) -> None:
    worlds[template].said = None
    with pytest.raises(openai.BadRequestError, match=expected):
        worlds[template].ask(**options)


def test_many_and_large_tools_are_refused_before_any_work(
    worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "tool_use", lambda *_: pytest.fail("not this far"))

    def tool(number: int, size: int = 0) -> dict[str, Any]:
        return {"type": "function", "function": {"name": f"f{number}", "description": "x" * size}}

    for tools in (
        [tool(number) for number in range(MAX_TOOLS + 1)],
        [tool(number, MAX_TOOLS_BYTES // 4) for number in range(4)],
    ):
        with pytest.raises(openai.BadRequestError, match="at most"):
            worlds["hermes"].ask(tools=tools)
