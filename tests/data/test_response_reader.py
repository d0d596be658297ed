"""Answers are read by their tokenizer's own response template, whole or in pieces."""

import random
from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer
from tool_templates import HERMES, RESPONSE

from foreword.compat.transformers_api import response_parser
from foreword.data.response_reader import ResponseReader, Thought
from foreword.data.tool_calls import ToolCall

BEGUN = "<|im_start|>assistant\n"
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}},
    }
]
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
TOKENIZER = tiny_tokenizer(chat_template=HERMES)
TOKENIZER.response_template = RESPONSE


def read(
    said: str, before: str = BEGUN, pieces: bool = False, has_reasoning: bool = True
) -> tuple[str, str, list[dict[str, Any]]]:
    """Return an answer's text, reasoning and the arguments of its calls."""
    parser = response_parser(TOKENIZER, before, TOOLS)
    reader, rng, events = ResponseReader(parser, {"f"}, has_reasoning), random.Random(said), []
    while said:
        cut = rng.randint(1, 9) if pieces else len(said)
        events += reader.put(said[:cut])
        said = said[cut:]
    events += reader.end()
    return (
        "".join(one for one in events if isinstance(one, str)),
        "".join(one.text for one in events if isinstance(one, Thought)),
        [one.arguments for one in events if isinstance(one, ToolCall)],
    )


@pytest.mark.parametrize(
    ("said", "text", "reasoning", "num_calls"),
    [
        ("Yes. \n", "Yes. \n", "", 0),
        ("<think>Hm.\n</think>\n\nYes.", "Yes.", "Hm.\n", 0),
        ("<think>Hm.", "", "Hm.", 0),
        (f"<think>Hm.</think>\nSo:\n{CALL}\n", "So:", "Hm.", 1),
        (f"{CALL}\n{CALL}", "", "", 2),
        (f"{CALL} Done.", "Done.", "", 1),
        (CALL[:-12], "", "", 1),  # the end of the answer closes it, too
        (CALL[:-16], CALL[:-16], "", 0),
        (f"So: {CALL[:-16]}", f"So: {CALL[:-16]}", "", 0),
        (CALL.replace('"f"', '"g"'), CALL.replace('"f"', '"g"'), "", 0),
        (f"No <tool_call>{{</tool_call> {CALL}", f"No <tool_call>{{</tool_call> {CALL}", "", 0),
        ("a < b <tool", "a < b <tool", "", 0),
        ("", "", "", 0),
    ],
)
def test_text_reasoning_and_calls_are_told_apart(
    said: str, text: str, reasoning: str, num_calls: int
) -> None:
    found = read(said)
    assert found == (text, reasoning, [{"a": 1}] * num_calls)
    for _ in range(3):
        assert read(said, pieces=True) == found, "the borders of pieces change nothing"


def test_reasoning_that_the_template_opens_is_reasoning() -> None:
    assert read("Hm.</think>Yes.", f"{BEGUN}<think>\n") == ("Yes.", "Hm.", [])


def test_reasoning_that_has_no_place_is_text() -> None:
    said = f"<think>Hm.</think>\nSo:\n{CALL}"
    assert read(said, has_reasoning=False) == ("<think>Hm.</think>\nSo:", "", [{"a": 1}])


def test_it_is_what_transformers_reads() -> None:
    said = f"<think>Hm.</think>So:{CALL}"
    parsed = TOKENIZER.parse_response(said, prefix=BEGUN, tools=TOOLS)
    text, reasoning, [arguments] = read(said)
    assert (parsed["content"], parsed["thinking"]) == (text, reasoning)
    assert parsed["tool_calls"][0]["function"]["arguments"] == arguments


def test_text_that_is_certain_does_not_wait() -> None:
    reader = ResponseReader(response_parser(TOKENIZER, BEGUN, TOOLS), {"f"})
    assert reader.put("So <to") == ["So"] and reader.put("y> it") == [" <toy> it"]


def test_a_tokenizer_without_a_response_template_has_no_parser() -> None:
    assert response_parser(tiny_tokenizer(), BEGUN, ()) is None


def test_a_call_that_is_too_deep_to_read_is_text() -> None:
    said = "<tool_call>" + "[" * 1100
    reader = ResponseReader(response_parser(TOKENIZER, BEGUN, TOOLS), {"f"})
    found = [*reader.put(said), *reader.end()]
    assert "".join(one for one in found if isinstance(one, str)).count("[") == 1100
