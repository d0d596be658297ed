"""Tools in requests: descriptions of tools, the choice among them, and calls in a conversation.

In: JSON values. Out: the fields of OpenAI's API for tools, bounded in number and size before
anything is done with them. Knows no model and no template.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, Tag, model_validator

from foreword.data.turns import described
from foreword.server.fields import TEXT, Strict, Text, one_of
from foreword.server.schema_form import WrittenSchema

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 131_072  # of all descriptions of a request together, as JSON
OBJECT = "(object)"

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ToolFunction(Strict):
    """What a tool is: its arguments follow a JSON schema; without one it has none."""

    name: ToolName
    description: str | None = Field(None, max_length=100_000)
    parameters: WrittenSchema | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_object(self) -> "ToolFunction":
        kind = (self.parameters or {}).get("type", "object")
        if isinstance(kind, str) and kind != "object":
            raise ValueError(f"parameters: expected a schema of an object, found type {kind!r:.80}")
        return self

    @property
    def schema_to_follow(self) -> dict[str, Any]:
        """The JSON schema of the arguments, which are an object."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object"} | self.parameters


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction

    def shown(self) -> dict[str, Any]:
        """Return what the chat template is given, as of a row of training."""
        function = {"name": self.function.name, "description": self.function.description}
        return described(
            {"type": "function", "function": function | {"parameters": self.function.parameters}}
        )


class ChosenFunction(Strict):
    """The name of a tool."""

    name: ToolName


class NamedTool(Strict):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: ChosenFunction


class CalledFunction(Strict):
    """What was called, and its arguments as JSON text."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    arguments: Text


class CallOfTurn(Strict):
    """A call in a turn of the assistant; the index is a stream's, and the list says the same."""

    id: Annotated[str, StringConstraints(max_length=200)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, ge=0, lt=MAX_TOOLS)


def _kind_of_choice(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT
    return OBJECT if isinstance(value, dict | NamedTool) else None


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[NamedTool, Tag(OBJECT)],
    one_of(_kind_of_choice, "none, auto, required, or an object that names a function"),
]
Calls = Annotated[list[CallOfTurn], Field(max_length=MAX_TOOLS, fail_fast=True)]


def check_tools(tools: list[Tool] | None, choice: "str | NamedTool | None") -> None:
    """Refuse descriptions that are too large, and a choice of a tool that is not among them.

    Raises:
        ValueError: says which.
    """
    names = [tool.function.name for tool in tools or []]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tools: two are called {twice!r}: rename one")
    size = sum(len(json.dumps(tool.shown(), ensure_ascii=False).encode()) for tool in tools or [])
    if size > MAX_TOOLS_BYTES:
        raise ValueError(f"tools: at most {MAX_TOOLS_BYTES} bytes of JSON in all, got {size}")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise ValueError(
            f"tool_choice: no tool is called {choice.function.name!r}: give it in tools"
        )
    if choice == "required" and not names:
        raise ValueError("tool_choice: required needs tools: give at least one")
