"""Row text: what stands before an answer, the answer, and what closes it, by a row template, a chat
template or neither.

In: an example's prompt and answer; a tokenizer, or a processor for images and sounds. Out: text in
which special tokens that the row spells are marked, see `special_tokens`. Knows no labels and
tokenizes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreword.config import EncodingConfig
from foreword.data import media_parts
from foreword.data.chat_template import ChatTemplate, Tools, around
from foreword.data.example import Example, message_text
from foreword.data.held_text import held_text_of
from foreword.data.media_parts import Message
from foreword.data.probes import PROBE
from foreword.data.processor import render
from foreword.data.said_text import SaidText
from foreword.data.special_tokens import SpecialTokens, special_tokens_of
from foreword.data.template_dates import template_in_use
from foreword.data.template_texts import text_of
from foreword.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin


@dataclass(frozen=True)
class RowText:
    """How the text of a row is written.

    Attributes:
        tokenizer: of the base.
        config: how its rows are encoded.
        processor: for images and sounds, if the base takes them.
        tools: for a chat template to show.
    """

    tokenizer: "PreTrainedTokenizerBase"
    config: EncodingConfig
    processor: "ProcessorMixin | None" = None
    tools: Tools = ()

    def as_asked(self, prompt: str | Sequence[Message]) -> str | Sequence[Message]:
        """Return a prompt in the form of the rows that it is to be like: a text as one user turn,
        or the one message of a user as plain text, a `SaidText`. Where nothing says, it is as it
        was given.

        Raises:
            DataError: other messages, or tools, where rows are plain text.
        """
        is_text = self.config.is_text
        if is_text is None or self.config.row_template is not None:
            return prompt
        if isinstance(prompt, str):
            is_turn = not is_text and not self.special.begins(prompt) and self.template.is_there
            return ({"role": "user", "content": prompt},) if is_turn else prompt
        if is_text and self.tools:
            raise DataError("rows of plain text show no tools: leave them out")
        return SaidText(_only_text(prompt, "rows of plain text")) if is_text else prompt

    def before(self, prompt: str | Sequence[Message]) -> str:
        """Return the text before the answer to a prompt.

        Raises:
            InputError: messages, but neither a row template nor a chat template.
            DataError: messages that the template cannot take, or does not show.
        """
        if self.config.row_template is not None:
            if self.tools:
                raise DataError("--row-template shows no tools: leave them out")
            return self.config.row_template.replace(
                "{prompt}", self._hidden(_only_text(prompt, "--row-template"))
            )
        if not isinstance(prompt, str):
            return self.template.before_answer(prompt, self.config.opening)
        if isinstance(prompt, SaidText):
            return self._plain(prompt.held) + self._hidden(prompt.said)
        return self._plain(prompt)

    def whole(self, prompt: str | Sequence[Message]) -> str | tuple[Message, ...]:
        """Return a prompt with the text that the virtual tokens hold, if they hold one.

        Raises:
            DataError: a prompt of another kind than the text.
        """
        held = held_text_of(self.config, self.template)
        found = prompt if held is None else held.before(prompt)
        return found if isinstance(found, str) else tuple(found)

    def answer(self, example: Example, completion: str, before: str) -> str:
        """Return the text of an answer behind `before`, without what closes it.

        Raises:
            DataError: it holds more than text, and no chat template for text writes it.
        """
        prompt = example.prompt
        if self.config.row_template or isinstance(prompt, str) or media_parts.has_media(prompt):
            if example.is_beyond_text:
                raise DataError(
                    "the answer holds a call of tools or reasoning, which neither --row-template "
                    "nor a row with images or sounds shows: leave it out"
                )
            return self._hidden(completion, is_answer=True)
        said = (example.answer or {"role": "assistant"}) | {"content": completion}
        return self.template.answer(prompt, said, before)

    def after(self, prompt: str | Sequence[Message]) -> str:
        """Return what a chat template writes behind an answer; "" where none says."""
        if self.config.row_template is not None:
            return ""
        if isinstance(prompt, str):
            if not self.is_filled(prompt) or not self.template.is_there:
                return ""
            prompt = [{"role": "user", "content": "a"}]
        if media_parts.has_media(prompt):
            return self._around_media(prompt)[1]
        return self.template.around_answer(prompt)[1]

    def before_media(self, prompt: Sequence[Message]) -> tuple[str, str]:
        """Return the text before an answer, for a conversation with images or sounds: up to the end
        of the generation prompt, and what the template writes behind that where an answer begins.
        """
        opened = render(prompt, self.processor, self.media_template, is_open=True)
        if self.config.opening == "generation":
            return opened, ""
        before, _ = self._around_media(prompt)
        return opened, before.removeprefix(opened) if before.startswith(opened) else ""

    def unused(self, example: Example) -> list[str]:
        """Return, in words, what of an example's messages is not shown."""
        turns: list[Message] = [*example.prompt]
        if example.answer is not None:
            turns.append(example.answer)
        if self.config.row_template is None and not media_parts.has_media(turns):
            return self.template.unused_keys(turns)
        keys = {key for turn in turns for key in turn} - {"role", "content"}
        written = self.media_template or text_of(self.processor)
        template = "" if self.config.row_template else written or ""
        return [f"key {key!r} of messages" for key in sorted(keys) if key not in template]

    def check_media(self, prompt: Sequence[Message]) -> None:
        """Refuse a conversation whose images or sounds cannot be read beside its text.

        Raises:
            DataError: no processor, a row template, tools, or a text that spells a special token.
        """
        kind = media_parts.first_media(prompt)
        if self.config.row_template is not None:
            raise DataError(
                f"expected text only for --row-template, found a part of type {kind!r}: leave it "
                "out"
            )
        if self.processor is None:
            raise DataError(
                f"expected text only, found a part of type {kind!r}, and there is no processor "
                "that reads it: load the model with Backbone.load, pass Backbone(..., "
                "processor=...), or leave the part out"
            )
        if self.config.held_text is not None:
            raise DataError(f"expected text only behind this prompt, found a part of type {kind!r}")
        if self.tools:
            raise DataError(f"expected no tools beside a part of type {kind!r}: leave them out")
        for text in media_parts.texts(prompt):
            if not self.config.special_tokens and self.special.spells(text):
                raise DataError(
                    "a text beside images or sounds spells a special token, which could stand for "
                    "one of them: leave it out"
                )

    @property
    def template(self) -> ChatTemplate:
        """The chat template, filled as the rows say."""
        given = template_in_use(self.config, self.tokenizer, bool(self.tools))
        return ChatTemplate(self.tokenizer, self.tools, not self.config.special_tokens, given)

    @property
    def media_template(self) -> str | None:
        """The text of the chat template for images and sounds; None: the processor's own."""
        return template_in_use(self.config, self.processor)

    @property
    def special(self) -> SpecialTokens:
        """The special tokens that a row may spell."""
        return special_tokens_of(self.tokenizer, self.config.chat_template)

    def is_filled(self, text: str) -> bool:
        """Return whether a plain text is a template that was filled already."""
        return self.config.special_tokens or self.begins_filled(text)

    def begins_filled(self, text: str) -> bool:
        """Return whether a plain text begins as a filled template does; no message does."""
        return not isinstance(text, SaidText) and self.special.begins(text)

    def _plain(self, text: str) -> str:
        return text if self.is_filled(text) else self._hidden(text)

    def _hidden(self, text: str, *, is_answer: bool = False) -> str:
        if self.config.special_tokens:
            return text
        return self.special.hide(text, is_answer=is_answer)

    def _around_media(self, prompt: Sequence[Message]) -> tuple[str, str]:
        turns = [*prompt, {"role": "assistant", "content": PROBE}]
        return around(PROBE, render(turns, self.processor, self.media_template))


def _only_text(prompt: str | Sequence[Message], what: str) -> str:
    if isinstance(prompt, str):
        return prompt
    roles = [message["role"] for message in prompt]
    if roles != ["user"]:
        raise DataError(
            f"expected one user message for {what}, found {', '.join(roles) or 'none'}: "
            "leave out the others, or use the chat template"
        )
    return message_text(prompt[0])
