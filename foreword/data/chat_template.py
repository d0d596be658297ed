"""Chat template: a conversation as text, with a check that the text says all that the turns say.

In: messages, tools, and a tokenizer with a chat template. Out: the text before an answer, the
answer as the template writes it, and what closes it; special tokens that the messages spell are
marked, see `special_tokens`. What a template does to a conversation is seen by filling it with a
probe, not believed. Knows no token ids and no labels.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from foreword.config import Opening
from foreword.data.example import message_text
from foreword.data.media_parts import Message
from foreword.data.special_tokens import SpecialTokens, shown, special_tokens_of
from foreword.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[dict[str, Any]]

PROBE = "foreword-probe"
"""Stands for a text, to see what a template does with one."""
_ASKING = ("system", "developer", "user")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, as it is filled for one conversation.

    Attributes:
        tokenizer: holds the template.
        tools: for the template to show.
        is_literal: whether special tokens that a message spells are plain text.
        given: the text of another template, used instead of the tokenizer's.
    """

    tokenizer: "PreTrainedTokenizerBase"
    tools: Tools = ()
    is_literal: bool = True
    given: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a template at all."""
        return bool(self.given or getattr(self.tokenizer, "chat_template", None))

    @property
    def text(self) -> str:
        """The template itself."""
        return self.given or str(self.tokenizer.chat_template)

    @property
    def special(self) -> SpecialTokens:
        """The special tokens that a message may spell."""
        return special_tokens_of(self.tokenizer, self.given)

    def before_answer(self, messages: Sequence[Message], opening: Opening) -> str:
        """Return the text before the answer to a conversation.

        Args:
            messages: the turns before the answer.
            opening: "answer": up to where the template writes an answer in this conversation;
                "generation": up to the end of its generation prompt.

        Raises:
            InputError: no chat template, or one that does not show an answer.
            DataError: messages or tools that the template refuses, or does not show.
        """
        if not messages:
            raise DataError("expected at least one message, found none")
        if opening == "answer":
            text, _ = self.around_answer(messages)
        else:
            text = self.render(messages, is_open=True)
        if self.tools and self.render(messages) == replace(self, tools=()).render(messages):
            raise DataError("the chat template shows no tools: leave them out, or use another base")
        for number, message in enumerate(messages):
            if not _shows(message, text) and not self._shows_probe(messages, number):
                raise DataError(
                    f"message {number + 1}: the chat template does not show this turn of role "
                    f"{message['role']!r}: leave it out, or use --row-template"
                )
        return text

    def around_answer(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return what the template writes before an answer to a conversation, and after it.

        Raises:
            InputError: the template does not show an answer.
        """
        return around(PROBE, self.render([*messages, _turn("assistant", PROBE)]))

    def answer(self, messages: Sequence[Message], answer: Message, before: str) -> str:
        """Return an answer as the template writes it behind `before`, without what closes it.

        Raises:
            DataError: the template writes this answer elsewhere.
        """
        whole = self.render([*messages, answer])
        _, after = self.around_answer(messages)
        if whole.startswith(before) and whole.endswith(after):
            return whole[len(before) : len(whole) - len(after)]
        text = self._text(answer)
        if set(answer) <= {"role", "content"} and text in whole:
            return text  # the generation prompt is no part of this template's conversations
        raise DataError(
            "the chat template does not write this answer where it writes others, since it holds "
            "reasoning or a call of tools: train all rows with --opening generation"
        )

    def shows_system_turn(self) -> bool:
        """Return whether the template takes a system turn and shows its text."""
        try:
            return PROBE in self.render([_turn("system", PROBE), _turn("user", "a")])
        except DataError:
            return False

    def render(self, messages: Sequence[Message], *, is_open: bool = False) -> str:
        """Return the text of a conversation; open: with the generation prompt.

        Raises:
            InputError: the tokenizer has no chat template.
            DataError: messages that the template refuses.
        """
        if not self.is_there:
            raise InputError("the tokenizer has no chat template for messages: use --row-template")
        if not messages:
            raise DataError("expected at least one message, found none")
        plain = [self._plain(message, number) for number, message in enumerate(messages, 1)]
        try:
            text = self.tokenizer.apply_chat_template(
                plain,
                chat_template=self.given,
                tools=list(self.tools) or None,
                tokenize=False,
                add_generation_prompt=is_open,
            )
        except Exception as error:  # a template is a program, and does what it likes
            raise refusal(error) from error
        assert isinstance(text, str)
        return text

    def unused_keys(self, messages: Sequence[Message]) -> set[str]:
        """Return the keys of messages that the template does not speak of."""
        keys = {key for message in messages for key in message} - {"role", "content"}
        return {key for key in keys if not re.search(rf"\b{re.escape(key)}\b", self.text)}

    def _plain(self, message: Message, number: int) -> Message:
        """Return a message as templates of text models take it: its content text, its special
        tokens marked, and the arguments of its calls objects.
        """
        found = {**message, "content": self._text(message)}
        if message.get("tool_calls"):
            if "tool_calls" not in self.text:
                raise DataError(
                    f"message {number}: the chat template shows no calls of tools: leave them out"
                )
            found["tool_calls"] = [_call(call, number) for call in message["tool_calls"]]
        return found

    def _text(self, message: Message) -> str:
        text = message_text(message)
        if not self.is_literal:
            return text
        return self.special.hide(text, is_answer=message["role"] == "assistant")

    def _shows_probe(self, messages: Sequence[Message], place: int) -> bool:
        """Return whether the template shows what stands at a place, if not as it is written."""
        probe = _turn(messages[place]["role"], PROBE)
        turns = [*messages[:place], probe, *messages[place + 1 :]]
        return PROBE in self.render(turns).casefold()


def around(probe: str, text: str) -> tuple[str, str]:
    """Return what stands before the last probe in a text, and after it.

    Raises:
        InputError: there is none.
    """
    before, found, after = text.rpartition(probe)
    if not found:
        raise InputError("the chat template does not show an answer: use --row-template")
    return before, after


def refusal(error: Exception) -> DataError:
    """Return what a template raised as one line on the messages."""
    reason = str(error).partition("\n")[0]
    if isinstance(error, TemplateError):
        return DataError(f"the chat template refuses the messages: {reason}")
    kind = type(error).__name__
    return DataError(f"the chat template fails on the messages: {kind}: {reason}")


def _turn(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _call(call: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a call of a tool whose arguments are an object, as templates take them."""
    function = call.get("function", call)
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"message {number}: expected the arguments of a call as JSON, found "
            f"{arguments!r:.60}: {error}"
        ) from None
    if "function" in call:
        return {**call, "function": {**function, "arguments": parsed}}
    return {**call, "arguments": parsed}


def _shows(message: Message, text: str) -> bool:
    """Return whether a filled template shows what a turn of the user's or the system's says."""
    if message["role"] not in _ASKING:
        return True
    return " ".join(message_text(message).split()) in " ".join(shown(text).split())
