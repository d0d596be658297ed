"""Held text: a text, or turns, that virtual tokens hold in place of every row's beginning.

In: what a prompt records of its text, and a row. Out: the row with the text before it, and its ids
without those that the virtual tokens hold; a row that does not begin with exactly these is refused.
Knows no model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from foreword.config import EncodingConfig
from foreword.data.chat_template import ChatTemplate
from foreword.data.media_parts import Message
from foreword.data.said_text import SaidText
from foreword.data.turns import read_turns
from foreword.errors import DataError

SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class HeldText:
    """What stands before every row.

    Attributes:
        value: plain text, or turns.
        template: the chat template that turns are written by.
    """

    value: str | tuple[Message, ...]
    template: ChatTemplate

    def before(self, prompt: str | Sequence[Message]) -> str | list[Message]:
        """Return a row with the text before it.

        Raises:
            DataError: a row of another kind than the text.
        """
        if isinstance(self.value, str):
            if not isinstance(prompt, str):
                raise DataError("the prompt holds plain text, and stands before no messages")
            held = f"{self.value}\n\n"
            return SaidText(prompt, held) if isinstance(prompt, SaidText) else held + prompt
        if isinstance(prompt, str):
            raise DataError("the prompt holds turns of a conversation: send messages, not text")
        if not prompt:
            raise DataError("expected at least one message, found none")
        if is_system_turn(self.value):
            return instructed(prompt, self.value[0]["content"], self.template)
        if prompt[0]["role"] in SYSTEM:
            raise DataError(
                "the prompt holds the beginning of the conversation: leave the system turn out"
            )
        return [*self.value, *prompt]


def is_system_turn(value: Sequence[Message]) -> bool:
    """Return whether turns are a system turn alone."""
    return len(value) == 1 and value[0]["role"] in SYSTEM


def instructed(turns: Sequence[Message], instruction: str, template: ChatTemplate) -> list[Message]:
    """Return a conversation with an instruction as its system turn, before what the conversation's
    own system turn says; before the first question where the chat template has no system turn.
    """
    has_own = turns[0]["role"] in SYSTEM
    if not has_own and template.is_there and template.shows_system_turn():
        return [{"role": "system", "content": instruction}, *turns]
    questions = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    place = 0 if has_own or not questions else questions[0]
    told = turns[place] | {"content": joined(instruction, turns[place].get("content") or "")}
    return [*turns[:place], told, *turns[place + 1 :]]


def joined(instruction: str, content: Any) -> Any:
    """Return what a message says, as text or in parts, with an instruction before it."""
    if isinstance(content, list):
        return [{"type": "text", "text": instruction}, *content]
    return f"{instruction}\n\n{content}"


def as_json(value: str | Sequence[Message]) -> str:
    """Return a text or turns as a prompt records them."""
    return json.dumps(value if isinstance(value, str) else list(value), ensure_ascii=False)


def held_text_of(config: EncodingConfig, template: ChatTemplate) -> HeldText | None:
    """Return the text that a prompt's virtual tokens hold; None where they hold none."""
    if config.held_text is None:
        return None
    value = json.loads(config.held_text)
    return HeldText(value if isinstance(value, str) else tuple(value), template)


def behind(ids: list[int], config: EncodingConfig) -> list[int]:
    """Return the ids of a row that the virtual tokens do not hold.

    Raises:
        DataError: the row does not begin with what they hold, or with nothing behind it.
    """
    if config.held_text is None:
        return ids
    length = config.held_tokens
    if len(ids) <= length or digest(ids[:length]) != config.held_hash:
        raise DataError(
            "this row does not begin with the text that the prompt's virtual tokens hold, so the "
            "answer would not be the same: leave out what changes its beginning"
        )
    return ids[length:]


def digest(ids: Sequence[int]) -> str:
    """Return the hash of token ids."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def common(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the ids that two rows begin with."""
    pairs = zip(first, second, strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def checked(value: Any) -> str | list[Message]:
    """Return a text or turns that can be recorded.

    Raises:
        DataError: no text, and no list of turns.
    """
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        raise DataError("expected a text that is not blank, or a list of messages")
    return read_turns(value, "the text")[0]
