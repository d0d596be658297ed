"""Response parsing: an answer read by its tokenizer's own response template, as it comes.

In: an answer's text, piece by piece, and transformers' parser of the tokenizer. Out: text,
reasoning and whole calls. What the parser cannot read, and a call of an unknown tool, stays text.
Knows no chat template and no tokens.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from foreword.compat import transformers_api
from foreword.data.tool_calls import ToolCall, calls_of
from foreword.errors import DataError

NUM_BEFORE = 256  # ids before an answer that its reader sees: all that a template writes of it
CONTENT, CALLS = "content", "tool_calls"
REASONING = ("reasoning_content", "reasoning", "thinking")
_FAILURES = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Thought(NamedTuple):
    """A piece of what an answer says before it answers."""

    text: str


Event = str | Thought | ToolCall


class ResponseReader:
    """Reads one answer.

    Args:
        parser: transformers', which has read what is before the answer.
        names: of the tools that it may call.
        has_reasoning: whether reasoning is told apart; else it is text, with its marks.
    """

    def __init__(self, parser: Any, names: Collection[str], has_reasoning: bool = True) -> None:
        self._parser, self._names, self._has_reasoning = parser, names, has_reasoning
        self._start = transformers_api.num_given(parser)
        self._text = ""
        self._told = 0  # where that ends of it which the parser has told
        opened = [event for event in parser.initial_events if event["type"] != "region_chunk"]
        is_begun = opened and (opened[-1]["type"], opened[-1]["field"]) == ("region_open", CALLS)
        self._call = 0 if is_begun else None  # where the call begins that is being read
        self._space = ""  # that is text only if text follows
        self._is_behind = False  # reasoning or a call, with no text since
        self._is_lost = False  # the parser has failed
        self._has_called = False

    def put(self, text: str) -> list[Event]:
        """Take text; return what is certain now."""
        found: list[Event] = []
        for character in text:  # so that the place of an event is known
            self._text += character
            if self._is_lost:
                found.append(character)
                continue
            try:
                events = self._parser.feed(character)
            except _FAILURES:  # at a value that is not what the template says
                found += self._rest()
                continue
            place = transformers_api.num_parsed(self._parser) - self._start
            found += self._read(events, max(0, place))
        return joined(found)

    def end(self) -> list[Event]:
        """Return what was held back, now that nothing follows."""
        found: list[Event] = []
        if not self._is_lost:
            try:
                found += self._read(self._parser.finalize()[1], len(self._text))
            except _FAILURES:
                found += self._rest()
        if self._space and not self._has_called:
            found.append(self._space)
        return joined(found)

    def _read(self, events: Sequence[Mapping[str, Any]], place: int) -> list[Event]:
        """Return what events say, of which the last one is at a place."""
        found: list[Event] = []
        for event in events:
            kind, field = event["type"], event["field"]
            if field in REASONING and not self._has_reasoning:
                found += self._content(self._text[self._told : place])
                self._told = place
            elif kind == "region_open" and field == CALLS:
                self._call = self._told
            elif kind == "region_chunk":
                text = event["text"]
                self._told = self._text.find(text, self._told) + len(text)
                if field == CONTENT:
                    found += self._content(text)
                elif field in REASONING:
                    found.append(Thought(text))
                    self._is_behind = True
            elif kind == "region_close" and field == CALLS:
                found += self._calls(event["value"], place)
                self._call = None
        self._told = self._told if self._call is not None else place
        return found

    def _content(self, text: str) -> list[Event]:
        """Return text; white space around calls and behind reasoning is their template's."""
        whole = self._space + text
        whole = whole.lstrip() if self._is_behind else whole
        said = whole.rstrip()
        self._space = whole[len(said) :]
        self._is_behind = self._is_behind and not said
        return [said] if said else []

    def _calls(self, value: Any, place: int) -> list[Event]:
        values = value if isinstance(value, list) else [value]
        try:
            calls = calls_of({"tool_calls": values})
        except (AttributeError, DataError):
            calls = ()
        if not calls or any(call.name not in self._names for call in calls):
            return [*self._taken_space(), self._text[self._call : place]]
        self._has_called = self._is_behind = True
        self._space = ""
        return list(calls)

    def _rest(self) -> list[Event]:
        """Return all that was not told as text, and read nothing more."""
        self._is_lost = True
        return [
            *self._taken_space(),
            self._text[self._told if self._call is None else self._call :],
        ]

    def _taken_space(self) -> list[Event]:
        space, self._space = self._space, ""
        return [space] if space else []


def has_response_template(tokenizer: Any) -> bool:
    """Whether a tokenizer says how its answers are read."""
    return getattr(tokenizer, "response_template", None) is not None


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens that a tokenizer's response template names, by their ids."""
    said = json.dumps(tokenizer.response_template, ensure_ascii=False).replace("\\", "")
    return {
        token_id: str(token)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and str(token) in said
    }


def calls_behind(
    tokenizer: Any,
    before: Sequence[int],
    text: str,
    tools: Sequence[dict[str, Any]],
    names: Collection[str],
) -> tuple[ToolCall, ...]:
    """Return the calls in a whole answer, read by the tokenizer's response template.

    Args:
        before: the ids before the answer.
        text: of the answer, with the template's special tokens.
        tools: descriptions of those that it may call.
        names: of those.
    """
    parser = transformers_api.response_parser(
        tokenizer, tokenizer.decode(list(before[-NUM_BEFORE:])), tools
    )
    reader = ResponseReader(parser, names)
    events = [*reader.put(text), *reader.end()]
    return tuple(one for one in events if isinstance(one, ToolCall))


def joined(events: Sequence[Event]) -> list[Event]:
    """Return events of which no two that follow each other are of one text."""
    found: list[Event] = []
    for one in events:
        last = found[-1] if found else None
        if isinstance(one, str) and isinstance(last, str):
            found[-1] = last + one
        elif isinstance(one, Thought) and isinstance(last, Thought):
            found[-1] = Thought(last.text + one.text)
        elif one:
            found.append(one)
    return found
