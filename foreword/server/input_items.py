"""Input items: the turns of a Responses request, and the same turns as chat messages.

In: JSON values. Out: validated items, bounded as chat messages are, and plain messages. An answer's
text and the calls right behind it are one turn, as the answer was. Items that stand for what a
server has stored, or for what the model never says, are refused. Knows no model and no template.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from foreword.server.fields import LIST, TEXT, Strict, Text, one_of, text_or_list
from foreword.server.protocol import InputAudio

Id = Annotated[str, Field(max_length=200)]
Status = Literal["in_progress", "completed", "incomplete"]

# What an item of each type holds; further fields of it are notes, which no template reads.
NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}
NOTES = {"type", "id", "status", "phase"}


class ItemPart(Strict):
    """A part of an item's content: the field of its type, and notes."""

    type: Literal["input_text", "output_text", "refusal", "input_image", "input_audio"]
    text: Text | None = None
    refusal: Text | None = None
    image_url: Text | None = None
    detail: Literal["auto"] | None = None
    input_audio: InputAudio | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=1_000_000)] | None = None

    @model_validator(mode="after")
    def _has_its_own(self) -> "ItemPart":
        own = {"input_text": "text", "output_text": "text", "input_image": "image_url"}
        needed = own.get(self.type, self.type)
        for name in ("text", "refusal", "image_url", "input_audio"):
            if (getattr(self, name) is not None) != (name == needed):
                raise ValueError(f"a part of type {self.type!r} needs {needed}, and no more")
        return self

    def chat_part(self) -> dict[str, Any]:
        """Return the part as one of a chat message; a refusal is its text."""
        if self.type == "input_image":
            return {"type": "image_url", "image_url": {"url": self.image_url}}
        if self.input_audio is not None:
            return {"type": "input_audio", "input_audio": self.input_audio.model_dump()}
        return {"type": "text", "text": self.text if self.text is not None else self.refusal}


ItemParts = Annotated[list[ItemPart], Field(min_length=1, max_length=4096, fail_fast=True)]
ItemContent = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[ItemParts, Tag(LIST)],
    one_of(text_or_list, "a text or a list of parts"),
]


class InputItem(Strict):
    """One item: a message, a call of a function, or what a call gave."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: ItemContent | None = None
    call_id: Id | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    arguments: Text | None = None
    output: ItemContent | None = None
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _has_its_own(self) -> "InputItem":
        needed = NEEDED[self.type]
        for name in set(type(self).model_fields) - NOTES:
            if (getattr(self, name) is not None) != (name in needed):
                raise ValueError(
                    f"an item of type {self.type!r} needs {', '.join(needed)}, and no more"
                )
        kinds = {part.type for part in self._parts}
        if self.role == "assistant" and not kinds <= {"input_text", "output_text", "refusal"}:
            raise ValueError("an assistant's content is text")
        if self.role != "assistant" and kinds & {"output_text", "refusal"}:
            raise ValueError("output_text and refusal are parts of an assistant's message")
        return self

    @property
    def _parts(self) -> list[ItemPart]:
        held = self.content if self.content is not None else self.output
        return held if isinstance(held, list) else []

    def turn(self) -> dict[str, Any]:
        """Return the item as a chat message; texts of an assistant's answer are one text."""
        held = self.content if self.content is not None else self.output
        parts = [part.chat_part() for part in self._parts]
        content = held if isinstance(held, str) else parts
        if self.role == "assistant" and parts:
            content = "".join(part["text"] for part in parts)
        if self.type == "function_call":
            function = {"name": self.name, "arguments": self.arguments}
            call = {"id": self.call_id, "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        if self.type == "function_call_output":
            return {"role": "tool", "tool_call_id": self.call_id, "content": content}
        return {"role": self.role, "content": content}


def messages_of(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Return items as chat messages: calls belong to the answer that they stand right behind, and
    so does its text behind a call.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        turn = item.turn()
        last: dict[str, Any] = messages[-1] if messages else {"role": "system"}
        if item.type == "function_call" and last["role"] == "assistant":
            last.setdefault("tool_calls", []).extend(turn["tool_calls"])
        elif turn["role"] == "assistant" and "tool_calls" in last:
            last["content"] = (last.get("content") or "") + turn["content"]
        else:
            messages.append(turn)
    return messages
