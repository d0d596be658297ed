"""Tool use: how one request's tools are shown, which calls its answers may hold, how they are read.

In: a validated request, and how rows of the model that it names are encoded. Out: descriptions for
the chat template, the grammar that an answer is held to, and a reader of answers. A template that
shows no tools, or whose calls cannot be read, is refused by name. Knows no HTTP and no engine.
"""

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from foreword.compat.transformers_api import response_parser
from foreword.config import EncodingConfig
from foreword.data.call_format import call_format
from foreword.data.call_reader import CallReader
from foreword.data.response_reader import Event, ResponseReader, Thought, special_tokens
from foreword.data.tool_calls import ToolCall
from foreword.errors import InputError
from foreword.server.tool_grammar import CallableTool, call_grammar
from foreword.server.tools import NamedTool, Tool

_LETTERS = string.ascii_letters + string.digits


class AnswerReader(Protocol):
    """Reads the calls and the reasoning out of one answer as it comes."""

    def put(self, text: str) -> Sequence[Event]:
        """Take text; return what is certain now."""

    def end(self) -> Sequence[Event]:
        """Return what was held back, now that nothing follows."""


class ToolRequest(Protocol):
    """What a request says of tools, and whether its answer has begun."""

    @property
    def tools(self) -> list[Tool] | None:
        """That it describes."""

    @property
    def tool_choice(self) -> str | NamedTool | None:
        """Which of them is to be called."""

    @property
    def parallel_tool_calls(self) -> bool | None:
        """Whether several calls may be in one answer."""

    @property
    def continue_final_message(self) -> bool:
        """Whether the last turn is the beginning of the answer."""


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request.

    Attributes:
        shown: their descriptions, for the chat template.
        grammar: what an answer is held to, as text for llguidance; None: nothing.
        kept: special tokens that are part of calls, by their ids.
        reader: makes a reader for one answer, given the text before it.
        before: that text, or its end.
    """

    shown: tuple[dict[str, Any], ...]
    grammar: str | None
    kept: Mapping[int, str]
    reader: Callable[[str], AnswerReader]
    before: str = ""


def tool_use(
    tokenizer: Any,
    config: EncodingConfig,
    body: ToolRequest,
    text_schema: Mapping[str, Any] | None = None,
    has_reasoning: bool = True,
) -> ToolUse | None:
    """Return how a request uses tools; None where it has none, or is to call none, and nothing of
    its answers is to be read.

    Args:
        tokenizer: of the model.
        config: how rows of the model are encoded.
        body: the request.
        text_schema: what an answer without calls follows; None: any text.
        has_reasoning: whether reasoning is told apart, where the tokenizer says how it is written.

    Raises:
        InputError: a template that shows no tools, or no calls that can be read.
    """
    choice, tools = body.tool_choice or "auto", body.tools or []
    by_response = None
    if text_schema is None and choice in ("auto", "none") and not body.continue_final_message:
        tools = [] if choice == "none" else tools
        by_response = _response_use(tokenizer, tools, has_reasoning)
    if not tools or choice == "none":
        return by_response if has_reasoning else None
    try:
        form = call_format(tokenizer, config)
    except InputError:
        if by_response is None or body.parallel_tool_calls is False or _has_strict(tools):
            raise
        return by_response
    callable_ = [
        CallableTool(tool.function.name, tool.function.schema_to_follow)
        for tool in tools
        if not isinstance(choice, NamedTool) or tool.function.name == choice.function.name
    ]
    kept = form.special_tokens(tokenizer)
    schemas = {tool.name: tool.schema for tool in callable_}
    is_forced = choice != "auto"
    has_one = isinstance(choice, NamedTool) or body.parallel_tool_calls is False
    is_held = is_forced or has_one or _has_strict(tools)
    grammar = None
    if is_held or text_schema is not None:
        grammar = call_grammar(
            form, callable_, kept, is_forced=is_forced, has_one=has_one, text_schema=text_schema
        )
    if by_response is not None:
        kept = {**kept, **by_response.kept}
        return replace(by_response, grammar=grammar, kept=kept)
    shown = tuple(tool.shown() for tool in tools)
    return ToolUse(shown, grammar, kept, lambda _: CallReader(form, schemas))


def _has_strict(tools: Sequence[Tool]) -> bool:
    return any(tool.function.strict for tool in tools)


def _response_use(tokenizer: Any, tools: Sequence[Tool], has_reasoning: bool) -> ToolUse | None:
    """Return how answers are read by the tokenizer's response template; None where it has none."""
    if response_parser(tokenizer, "", ()) is None:
        return None
    shown = tuple(tool.shown() for tool in tools)
    names = frozenset(tool.function.name for tool in tools)
    kept = special_tokens(tokenizer)

    def reader(before: str) -> AnswerReader:
        return ResponseReader(response_parser(tokenizer, before, shown), names, has_reasoning)

    return ToolUse(shown, None, kept, reader)


def check_begun(use: ToolUse | None, is_begun: bool) -> None:
    """Refuse tools for an answer that has begun: half a call in it would not be read.

    Raises:
        InputError: says so.
    """
    if use is not None and is_begun:
        raise InputError(
            "tools: an answer that goes on from continue_final_message is not read as calls: leave "
            'one out, or give tool_choice "none"'
        )


def check_unformed(schema: Mapping[str, Any] | None, is_begun: bool) -> None:
    """Refuse a form for an answer that has begun: it would begin anew behind what is there.

    Raises:
        InputError: says so.
    """
    if schema is not None and is_begun:
        raise InputError(
            "response_format: an answer that goes on from continue_final_message is not held to a "
            "form, which would begin again behind it: leave one out"
        )


def call_id() -> str:
    """Return an id for a call: nine letters and digits, which is what every template takes."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def as_message(call: ToolCall) -> dict[str, Any]:
    """Return a call as OpenAI's API writes it."""
    return {
        "id": call.id or call_id(),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_text},
    }


def split(events: Sequence[Event]) -> tuple[str, str, list[ToolCall]]:
    """Return the text of what was read, the reasoning, and the calls."""
    text = "".join(one for one in events if isinstance(one, str))
    reasoning = "".join(one.text for one in events if isinstance(one, Thought))
    return text, reasoning, [one for one in events if isinstance(one, ToolCall)]
