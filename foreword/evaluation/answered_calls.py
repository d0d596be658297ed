"""Answered calls: the calls of tools in expected and in given answers, for the metric of calls.

In: examples, and what the model said. Out: the calls of each, read as the server reads them.
Knows no score.
"""

from collections.abc import Sequence

from foreword import chat
from foreword.backbone import Backbone
from foreword.chat import Answer
from foreword.config import EncodingConfig
from foreword.data.call_format import call_format
from foreword.data.call_reader import ToolSchemas, read_answer
from foreword.data.encoding import decode
from foreword.data.example import Example, named
from foreword.data.response_reader import calls_behind, has_response_template, special_tokens
from foreword.data.tool_calls import ToolCall, calls_of, name_of, schema_of

Calls = tuple[ToolCall, ...]


def expected_calls(examples: Sequence[Example]) -> list[Calls]:
    """Return the calls of each example's answer.

    Raises:
        DataError: a call without a name or arguments; names the row.
    """
    found = []
    for example in examples:
        with named(example.source):
            found.append(calls_of(example.answer))
    return found


def answered_calls(
    backbone: Backbone,
    config: EncodingConfig,
    examples: Sequence[Example],
    answers: Sequence[Answer],
) -> list[Calls]:
    """Return the calls in each answer, of the tools of its row; of those that any row calls, where
    a row describes none.

    Raises:
        InputError: rows whose template writes no calls that can be read.
    """
    called: ToolSchemas = {call.name: {} for calls in expected_calls(examples) for call in calls}
    read = _by_response if has_response_template(backbone.tokenizer) else _by_form
    found = []
    for example, answer in zip(examples, answers, strict=True):
        ids = answer.ids[: len(answer.ids) - answer.is_finished]
        tools = {name_of(tool): schema_of(tool) for tool in example.tools} or called
        found.append(read(backbone, config, example, ids, tools))
    return found


def _by_form(
    backbone: Backbone,
    config: EncodingConfig,
    example: Example,
    ids: Sequence[int],
    tools: ToolSchemas,
) -> Calls:
    """Return the calls as the chat template writes them."""
    form = call_format(backbone.tokenizer, config)
    kept = form.special_tokens(backbone.tokenizer)
    return tuple(read_answer(decode(ids, backbone.tokenizer, kept), form, tools).calls)


def _by_response(
    backbone: Backbone,
    config: EncodingConfig,
    example: Example,
    ids: Sequence[int],
    tools: ToolSchemas,
) -> Calls:
    """Return the calls as the tokenizer's response template reads them."""
    before, _ = chat.encode(backbone, example.prompt, config, None, example.tools)
    text = decode(ids, backbone.tokenizer, special_tokens(backbone.tokenizer))
    return calls_behind(backbone.tokenizer, before, text, example.tools, tools)
