"""Example: what comes before one answer, and the answer, as text or as turns of a conversation.

In: what a row of a data file says. Out: plain data that no tokenizer has seen. Knows no columns and
no files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foreword.data.media_parts import Message
from foreword.errors import DataError

BEYOND_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""What makes an answer more than its text."""


@dataclass(frozen=True)
class Example:
    """One answer and what comes before it.

    Attributes:
        prompt: plain text, or the turns before the answer.
        completion: the answer's text; blank only where `answer` says more than text.
        source: where the row stands, as "rows.jsonl:12", with the number of the answer where a
            conversation has several.
        task: what it is an example of, where a file holds several tasks.
        tools: descriptions of tools for the chat template to show, as JSON schemas.
        answer: the whole turn of an answer that has other keys than role and content.
        conversation: tells the row that it shares with other answers; "" where it is the only one.
        fields: texts of columns that a template was filled with, to make the prompt.
        rejected: the same with an answer that is liked less, where a row has two.
    """

    prompt: str | tuple[Message, ...]
    completion: str
    source: str = "example"
    task: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    answer: Message | None = None
    conversation: str = ""
    fields: tuple[str, ...] = ()
    rejected: "Example | None" = None

    @property
    def is_beyond_text(self) -> bool:
        """Whether the answer is more than text: a call of tools, or reasoning."""
        return any((self.answer or {}).get(key) for key in BEYOND_TEXT)

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls tools."""
        return bool((self.answer or {}).get("tool_calls"))


def message_text(message: Message) -> str:
    """The text of a message, "" if it only calls tools; text parts are joined by a line break.

    Raises:
        DataError: a part is an image, a sound or anything else that is not text.
    """
    content: str | list[dict[str, Any]] = message.get("content") or ""
    if isinstance(content, str):
        return content
    for part in content:
        if part["type"] != "text":
            raise DataError(
                f"expected text only in a message of role {message['role']!r}, found a part of "
                f"type {part['type']!r}: leave it out"
            )
    return "\n".join(part["text"] for part in content)


def counted(count: int) -> str:
    """Return a number of rows in words."""
    return f"{count} row{'s' if count > 1 else ''}"


@contextmanager
def named(source: str) -> Iterator[None]:
    """Put the source of a row before the message of a `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{source}: {error}") from None
