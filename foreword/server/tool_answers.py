"""Tool answers: the text of each answer as content, reasoning and calls, whole or in deltas.

In: the texts of a call's answers as they come. Out: the fields of a message or of a delta in
OpenAI's form. A call is told once it is whole, so that a stream says exactly what the whole answer
says. Knows no tokens.
"""

from typing import Any

from foreword.data.tool_calls import ToolCall
from foreword.server.tool_use import AnswerReader, ToolUse, as_message, split

REASONING = "reasoning_content"


class CallsOfAnswers:
    """Reads the calls of every answer of one request.

    Args:
        use: of the request's tools; None: text is text.
    """

    def __init__(self, use: ToolUse | None) -> None:
        self._use = use
        self._readers: dict[int, AnswerReader] = {}
        self._num_calls: dict[int, int] = {}

    def deltas(self, index: int, text: str, is_end: bool) -> list[dict[str, Any]]:
        """Return what is new in an answer: reasoning, text, and of each call name, then arguments,
        as clients expect them.
        """
        told, reasoning, calls = self._read(index, text, is_end)
        found: list[dict[str, Any]] = [{REASONING: reasoning}] if reasoning else []
        found += [{"content": told}] if told else []
        for number, call in enumerate(calls, self._num_calls.get(index, 0) - len(calls)):
            begun = as_message(call)
            function = {"arguments": begun["function"]["arguments"]}
            begun["function"] |= {"arguments": ""}
            found.append({"tool_calls": [{"index": number} | begun]})
            found.append({"tool_calls": [{"index": number, "function": function}]})
        return found

    def message(self, index: int, text: str) -> dict[str, Any]:
        """Return content and calls of a whole answer: content is null beside calls alone."""
        told, reasoning, calls = self._read(index, text, True)
        thought = {REASONING: reasoning} if reasoning else {}
        if not calls:
            return {"content": told, **thought}
        made = [as_message(call) for call in calls]
        return {"content": told or None, **thought, "tool_calls": made}

    def reason(self, index: int, reason: str | None) -> str | None:
        """Return why an answer ended; one that ended by itself behind a call waits for a result."""
        return "tool_calls" if reason == "stop" and self._num_calls.get(index) else reason

    def _read(self, index: int, text: str, is_end: bool) -> tuple[str, str, list[ToolCall]]:
        if self._use is None:
            return text, "", []
        if index not in self._readers:
            self._readers[index] = self._use.reader(self._use.before)
        reader = self._readers[index]
        told, reasoning, calls = split([*reader.put(text), *(reader.end() if is_end else [])])
        self._num_calls[index] = self._num_calls.get(index, 0) + len(calls)
        return told, reasoning, calls
