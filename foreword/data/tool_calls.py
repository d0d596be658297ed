"""Tool calls: a call as its name and arguments, and the calls of a turn.

In: a message as a data file or a client writes it. Out: calls that can be compared. Knows no
template and no text of an answer.
"""

import json
from typing import Any, NamedTuple

from foreword.data.json_files import STRICT
from foreword.data.media_parts import Message
from foreword.errors import DataError


class ToolCall(NamedTuple):
    """One call.

    Attributes:
        name: of the tool.
        arguments: as JSON values.
        id: as the answer writes it, where its format has one.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None = None

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON text."""
        return json.dumps(self.arguments, ensure_ascii=False)


def calls_of(message: Message | None) -> tuple[ToolCall, ...]:
    """Return the calls of a turn, whose arguments may be an object or its JSON text.

    Raises:
        DataError: a call without a name, or whose arguments are no object.
    """
    found = []
    for call in (message or {}).get("tool_calls") or []:
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") or {} if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                arguments = STRICT.decode(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise DataError(
                f"expected calls with a name and an object of arguments, found {call!r:.80}"
            )
        found.append(ToolCall(name, arguments))
    return tuple(found)


def name_of(tool: dict[str, Any]) -> str:
    """Return what a description of a tool calls it; "" where it does not say."""
    function = tool.get("function", tool)
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def schema_of(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a described tool's arguments; empty where it does not say."""
    function = tool.get("function", tool)
    found = function.get("parameters") if isinstance(function, dict) else None
    return found if isinstance(found, dict) else {}
