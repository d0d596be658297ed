"""Chat template: a conversation as text, with a check that the text says all that the turns say.

In: messages, tools, and a tokenizer with a chat template. Out: the text before an answer, the
answer as the template writes it, and what closes it; special tokens that the messages spell are
marked, see `special_tokens`. What a template does to a conversation is seen by filling it with
probes, not believed. Knows no token ids and no labels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from foreword.compat.error_lines import first_line
from foreword.config import Opening
from foreword.data.example import message_text
from foreword.data.json_files import STRICT
from foreword.data.media_parts import Message
from foreword.data.probes import PROBE, PROBES, Lost, probed_tools, probed_turns
from foreword.data.special_tokens import ESCAPED, SpecialTokens, special_tokens_of
from foreword.data.template_texts import text_of, texts_of
from foreword.data.turns import HALF_SURROGATE
from foreword.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[dict[str, Any]]


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
        return bool(self.given or texts_of(self.tokenizer))

    @property
    def text(self) -> str | None:
        """The template itself; None: there is none for such conversations."""
        return self.given or text_of(self.tokenizer, bool(self.tools))

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
        text = self.opened(messages, opening)
        bare = replace(self, tools=())
        if self.tools and text == bare.opened(messages, opening):
            raise DataError("the chat template shows no tools: leave them out, or use another base")
        tools, lost_tools = probed_tools(self.tools)
        turns, lost = probed_turns(messages)
        probing = replace(self, tools=tools)
        if what := _first_lost(lost | lost_tools, probing.opened(turns, opening)):
            is_open = opening == "answer" and not _first_lost(
                lost | lost_tools, probing.render(turns, is_open=True)
            )
            other = "train all rows with --opening generation" if is_open else "leave it out"
            raise DataError(f"{what}: {other}, or use --row-template")
        return text

    def opened(self, messages: Sequence[Message], opening: Opening) -> str:
        """Return the text before the answer to a conversation, whatever it shows of it."""
        if opening == "answer":
            return self.around_answer(messages)[0]
        return self.render(messages, is_open=True)

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
        text = self._text(answer)
        turns, lost = probed_turns([*messages, answer])
        calls = {probes: what for probes, what in lost.items() if len(probes) > 1}
        if what := _first_lost(calls, self.render(turns)):
            raise DataError(f"{what}: leave them out")
        if whole.startswith(before) and whole.endswith(after):
            written = whole[len(before) : len(whole) - len(after)]
            if _squeezed(text) in _squeezed(written):
                return written
            raise DataError(
                "the chat template leaves out a part of this answer: shorten it to what is shown, "
                "or give a --chat-template that shows it"
            )
        if set(answer) <= {"role", "content"} and text in whole:
            return text  # the generation prompt is no part of this template's conversations
        raise DataError(
            "the chat template does not write this answer where it writes others, since it holds "
            "reasoning, a call of tools or another key: train all rows with --opening generation, "
            "or give a --chat-template that shows it there"
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
        try:
            plain = [self._plain(message, number) for number, message in enumerate(messages, 1)]
            tools = [self._hidden(tool) for tool in self.tools]
        except RecursionError:
            raise DataError("a message or a tool holds values too deep in each other") from None
        try:
            text = self.tokenizer.apply_chat_template(
                plain,
                chat_template=self.given,
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=is_open,
            )
        except Exception as error:  # a template is a program, and does what it likes
            raise refusal(error) from error
        assert isinstance(text, str)
        if ESCAPED in text.casefold():
            raise DataError(
                "a text spells a special token, and the chat template escapes it: leave it out, or "
                "give --special-tokens"
            )
        if HALF_SURROGATE.search(text):
            raise DataError("expected Unicode text, found half a surrogate pair: mend it")
        return text

    def unused_keys(self, messages: Sequence[Message]) -> list[str]:
        """Return, in words, the keys of messages without which the template writes the same."""
        roles: dict[str, set[str]] = {}
        for message in messages:
            for key in {*message} - {"role", "content", "tool_calls"}:
                roles.setdefault(key, set()).add(message["role"])
        whole = self.render(messages) if roles else ""
        unused = []
        for key, those in roles.items():
            without = {
                role for role in those if self.render(_without(messages, key, role)) == whole
            }
            of = [""] if without == those else [f"{role} " for role in sorted(without)]
            unused += [f"key {key!r} of {role}messages" for role in of]
        calling = [bool(m.get("tool_calls") and message_text(m)) for m in messages]
        if any(calling):
            silent = [
                {**message, "content": ""} if is_calling else message
                for message, is_calling in zip(messages, calling, strict=True)
            ]
            if self.render(silent) == (whole or self.render(messages)):
                unused.append("the text beside calls of tools")
        return unused

    def _plain(self, message: Message, number: int) -> Message:
        """Return a message as templates of text models take it: its content text, its special
        tokens marked, and the arguments of its calls objects.
        """
        found = {**message, "content": message_text(message)}
        if message.get("tool_calls"):
            found["tool_calls"] = [_call(call, number) for call in message["tool_calls"]]
        is_answer = message["role"] == "assistant"
        return {key: self._hidden(value, is_answer=is_answer) for key, value in found.items()}

    def _text(self, message: Message) -> str:
        text: str = self._hidden(message_text(message), is_answer=message["role"] == "assistant")
        return text

    def _hidden(self, value: Any, *, is_answer: bool = False) -> Any:
        """Return a value in whose texts, at any depth, the special tokens are marked."""
        if not self.is_literal:
            return value
        if isinstance(value, str):
            return self.special.hide(value, is_answer=is_answer)
        if isinstance(value, list):
            return [self._hidden(one, is_answer=is_answer) for one in value]
        if isinstance(value, dict):
            return {
                self._hidden(key, is_answer=is_answer): self._hidden(one, is_answer=is_answer)
                for key, one in value.items()
            }
        return value


def around(probe: str, text: str) -> tuple[str, str]:
    """Return what stands before the last probe in a text, and after it. Spaces right before it
    are left out: they belong to the token that a text in its place begins with.

    Raises:
        InputError: there is none.
    """
    found = [*re.finditer(re.escape(probe), text, re.IGNORECASE)]
    if not found:
        raise InputError("the chat template does not show an answer: use --row-template")
    return text[: found[-1].start()].rstrip(" "), text[found[-1].end() :]


def refusal(error: Exception) -> DataError:
    """Return what a template raised as one line on the messages."""
    reason = first_line(error)
    if isinstance(error, TemplateError):
        return DataError(f"the chat template refuses the messages: {reason}")
    kind = type(error).__name__
    return DataError(f"the chat template fails on the messages: {kind}: {reason}")


def _turn(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _without(messages: Sequence[Message], key: str, role: str) -> list[Message]:
    return [
        {name: value for name, value in message.items() if name != key or message["role"] != role}
        for message in messages
    ]


def _first_lost(lost: Lost, text: str) -> str | None:
    """Return the first of what a filled template lacks, whatever the case of its letters; the text
    is read once, however many turns there are.
    """
    found = frozenset(PROBES.findall(text.casefold()))
    return next((what for probes, what in lost.items() if found.isdisjoint(probes)), None)


def _squeezed(text: str) -> str:
    """Return a text without its white space, and without the case of its letters."""
    return "".join(text.split()).casefold()


def _call(call: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a call of a tool whose arguments are an object, as templates take them."""
    function = call.get("function", call)
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, str):
        return _with_arguments(call, arguments)
    try:
        parsed = STRICT.decode(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"message {number}: expected the arguments of a call as JSON, found "
            f"{arguments!r:.60}: {error}"
        ) from None
    if not isinstance(parsed, dict):
        raise DataError(
            f"message {number}: expected the arguments of a call as an object, found "
            f"{arguments!r:.60}"
        )
    return _with_arguments(call, parsed)


def _with_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    """Return a call with the name before the arguments, as answers are read that call tools."""
    function = call.get("function", call)
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    named = {key: function[key] for key in ("name",) if key in function}
    ordered = named | {"arguments": arguments} | {**function, "arguments": arguments}
    return {**call, "function": ordered} if "function" in call else ordered
