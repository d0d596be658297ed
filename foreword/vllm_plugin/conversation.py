"""Conversations: the turns and tools of a chat behind a prompt, checked as foreword's server does.

In: vLLM's own body of a chat. Out: turns as plain data, and how tools are shown, held and read: by
the chat template that the prompt was trained with, whichever parser vLLM was started with. Imports
no vLLM.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from foreword.config import EncodingConfig
from foreword.data.response_reader import NUM_BEFORE, Event
from foreword.errors import InputError, UnsupportedError
from foreword.server.body_errors import errors_of, problem_of
from foreword.server.protocol import TokenizeRequest
from foreword.server.tool_use import AnswerReader, ToolUse, tool_use

FIELDS = ("messages", "tools", "tool_choice", "parallel_tool_calls")
HELD_ANSWER = ("response_format", "structured_outputs")


def conversation(body: Any) -> TokenizeRequest:
    """Return the turns and tools of a chat.

    Raises:
        InputError: says what is wrong, and where.
    """
    given = {name: _plain(getattr(body, name, None)) for name in FIELDS}
    # What vLLM takes where nothing is said.
    if not given["tools"] and given["tool_choice"] == "none":
        del given["tool_choice"]
    if given["parallel_tool_calls"] is True:
        del given["parallel_tool_calls"]
    try:
        return TokenizeRequest.model_validate({"model": body.model, **given})
    except ValidationError as error:
        raise InputError(problem_of(errors_of(error)[0], TokenizeRequest)) from None


def tools_of(
    body: Any, turns: TokenizeRequest, tokenizer: Any, encoding: EncodingConfig, *, can_hold: bool
) -> ToolUse | None:
    """Return how a chat uses tools; None where it has none.

    Args:
        body: of the request.
        turns: what `conversation` returned for it.
        tokenizer: of the base.
        encoding: how rows of the prompt are written.
        can_hold: whether the engine holds answers to grammars of llguidance.

    Raises:
        InputError: a template that shows no tools, or no calls that can be read.
        UnsupportedError: an answer that the engine cannot hold to a form, or to two at once.
    """
    use = tool_use(tokenizer, encoding, turns, has_reasoning=False)
    if use is None:
        return None
    for field in HELD_ANSWER:
        if getattr(body, field, None) is not None:
            raise UnsupportedError(
                f"{field} beside tools does not work with a soft prompt on vLLM; leave one out"
            )
    if use.grammar is not None and not can_hold:
        raise UnsupportedError(
            'tool_choice "required" or named, parallel_tool_calls: false and strict tools need '
            'vLLM\'s option --structured-outputs-config \'{"backend": "guidance"}\''
        )
    return use


def behind(use: ToolUse | None, ids: list[int], tokenizer: Any) -> ToolUse | None:
    """Return how the answer behind a row of ids is read."""
    if use is None:
        return None
    before = str(tokenizer.decode(ids[-NUM_BEFORE:], clean_up_tokenization_spaces=False))
    others = [
        re.escape(str(token))
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token_id not in use.kept
    ]
    if not use.kept or not others:  # vLLM leaves them all out
        return replace(use, before=before)
    hidden, read = re.compile("|".join(others)), use.reader
    return replace(use, before=before, reader=lambda text: _ShownReader(read(text), hidden))


class _ShownReader:
    """Reads an answer that has special tokens of which only some are text."""

    def __init__(self, reader: AnswerReader, hidden: re.Pattern[str]) -> None:
        self._reader, self._hidden = reader, hidden

    def put(self, text: str) -> Sequence[Event]:
        """Take text; return what is certain now."""
        return self._reader.put(self._hidden.sub("", text))

    def end(self) -> Sequence[Event]:
        """Return what was held back, now that nothing follows."""
        return self._reader.end()


def _plain(value: Any) -> Any:
    """Return pydantic's objects and iterators as JSON's own values, nulls left out."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
