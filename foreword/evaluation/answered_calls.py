"""Answered calls: the calls of tools in expected and in given answers, for the metric of calls.

In: examples, and what the model said. Out: the calls of each, read as the server reads them.
Knows no score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.chat import Answer
from foreword.config import EncodingConfig
from foreword.data.argument_types import type_of
from foreword.data.call_format import call_format
from foreword.data.call_reader import ToolSchemas, read_answer
from foreword.data.encoding import decode
from foreword.data.example import Example, named
from foreword.data.response_reader import calls_behind, has_response_template, special_tokens
from foreword.data.row import Row
from foreword.data.tool_calls import ToolCall, calls_of, name_of, schema_of
from foreword.errors import DataError
from foreword.evaluation.metrics import Outcome, same_calls

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
    """Return the calls in each answer, of the tools of its row; where a row describes none, of
    those that any row calls, with arguments of the types that its own calls have.

    Raises:
        InputError: rows whose template writes no calls that can be read.
    """
    expected = expected_calls(examples)
    called: dict[str, Mapping[str, Any]] = {call.name: {} for calls in expected for call in calls}
    read = _by_response if has_response_template(backbone.tokenizer) else _by_form
    found = []
    for example, calls, answer in zip(examples, expected, answers, strict=True):
        ids = answer.ids[: len(answer.ids) - answer.is_finished]
        own = {name_of(tool): schema_of(tool) for tool in example.tools}
        tools: ToolSchemas = own or called | _schemas_of(calls)
        found.append(read(backbone, config, example, ids, tools))
    return found


def check_readable(
    backbone: Backbone, config: EncodingConfig, examples: Sequence[Example], rows: Sequence[Row]
) -> None:
    """Refuse calls that are not read as they are, from the very tokens that a row expects: no
    answer could be right.

    Args:
        backbone: with a tokenizer.
        config: how the rows are encoded.
        examples: as they are asked.
        rows: of the examples, encoded.

    Raises:
        InputError: rows whose template writes no calls that can be read.
        DataError: a row whose own calls are read otherwise; names it.
    """
    expected = expected_calls(examples)
    answers = [
        Answer("", row.num_labels, is_finished=True, ids=row.input_ids[-row.num_labels :])
        for row in rows
    ]
    found = answered_calls(backbone, config, examples, answers)
    for example, calls, read in zip(examples, expected, found, strict=True):
        if calls and not same_calls(Outcome("", expected_calls=calls, calls=read)):
            raise DataError(
                f"{example.source}: the calls of the answer are read otherwise from the text that "
                "the chat template writes, since an argument spells the template's own marks: "
                "leave the row out"
            )


def _schemas_of(calls: Calls) -> dict[str, Mapping[str, Any]]:
    """Return schemas by which the arguments of calls have the types that they have."""
    return {
        call.name: {
            "properties": {key: {"type": type_of(value)} for key, value in call.arguments.items()}
        }
        for call in calls
        if isinstance(call.arguments, dict)
    }


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
