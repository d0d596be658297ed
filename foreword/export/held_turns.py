"""Held turns in exported chat templates: rows of a prompt that stands in the place of turns.

In: how rows are encoded behind such a prompt, and the chat template that they are written by. Out:
a template that writes a conversation with those turns before it, and leaves out what the prompt's
tokens stand for, which is the same text in every row. Knows no file format.
"""

import json
import re
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import held_text
from foreword.data.chat_template import ChatTemplate
from foreword.data.held_text import SYSTEM, HeldText
from foreword.data.tokenizing import token_ids
from foreword.errors import UnsupportedError

OTHERWISE = (
    "this conversation does not begin with the text that the prompt's tokens stand for, so the "
    "answer would not be the same: leave out what changes its beginning"
)
PROBES = ("a", "\u0416")  # texts that begin alike in no tokenizer


def template_behind(backbone: Backbone, config: EncodingConfig, body: str, opened: str) -> str:
    """Return a chat template's text as it writes rows behind the turns that a prompt holds.

    Args:
        backbone: with the tokenizer that wrote the prompt's rows.
        config: how they are encoded; it holds turns.
        body: the chat template, as it is written among others.
        opened: what stands behind its generation prompt.

    Raises:
        UnsupportedError: what is left out is no beginning of the text.
    """
    template = ChatTemplate(backbone.tokenizer, given=config.chat_template)
    held = held_text.held_text_of(config, template)
    assert held is not None and not isinstance(held.value, str)
    known = _held_beginning(backbone, config, held, body, opened)
    return (
        _before(held, template)
        + "{%- set rendered %}"
        + body
        + "{%- endset %}"
        + f"{{%- if rendered[:{len(known)}] != {literal(known)} %}}"
        + f"{{{{- raise_exception({literal(OTHERWISE)}) }}}}{{%- endif %}}"
        + f"{{{{- rendered[{len(known)}:] }}}}"
    )


def verbatim(template: str) -> str:
    """Return a chat template as it stands among others and writes what it writes alone: white space
    at its two ends included, which Jinja cuts by what is beside it.
    """
    alone = re.sub(r"(\r\n|\r|\n)\Z", "", template)  # as Jinja does at the end of a file
    # A break behind a block is none of the text, and begins a line as a file does.
    return "{%- if true %}\n" + alone + "{{ '' }}{%- endif %}"


def literal(value: Any) -> str:
    """Return a value as templates write it: characters as they are, since escapes of more than
    four digits mean something else there.
    """
    return json.dumps(value, ensure_ascii=False)


def _held_beginning(
    backbone: Backbone, config: EncodingConfig, held: HeldText, body: str, opened: str
) -> str:
    """Return the text that every row begins with and the prompt stands for."""
    texts: list[str] = []
    tokenizer, ids = backbone.tokenizer, []
    for probe in PROBES:
        turns = [{"role": "user", "content": probe}]
        written: Any = tokenizer.apply_chat_template(
            list(held.before(turns)),
            chat_template=body,
            tokenize=False,
            add_generation_prompt=True,
        )
        texts.append(written + opened)
        ids.append(chat.encode(backbone, turns, config)[0])
    alike = len(held_text.common(texts[0].encode("utf-32-le"), texts[1].encode("utf-32-le"))) // 4
    for length in range(alike, 0, -1):
        rest = [token_ids(tokenizer, text[length:], add_special_tokens=False) for text in texts]
        if rest == ids:
            return texts[0][:length]
    raise UnsupportedError(
        f"the tokenizer of {backbone.name} does not end a token where the prompt's turns end, so "
        "that no template can leave them out; use foreword's server"
    )


def _before(held: HeldText, template: ChatTemplate) -> str:
    """Return what puts the held turns before the messages, as `HeldText.before` does.

    Raises:
        UnsupportedError: an instruction that the template writes into a question.
    """
    assert not isinstance(held.value, str)
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in held.value]
    is_own = f"messages[0]['role'] in {literal(list(SYSTEM))}"
    if not held_text.is_system_turn(held.value):
        said = "the prompt holds the beginning of the conversation: leave the system turn out"
        refused = f"{{%- if {is_own} %}}{{{{- raise_exception({literal(said)}) }}}}{{%- endif %}}"
        return refused + f"{{%- set messages = {literal(turns)} + messages %}}"
    if not template.shows_system_turn():
        raise UnsupportedError(
            "the base's chat template has no system turn, so that the prompt stands within the "
            "first question; use foreword's server"
        )
    [turn] = turns
    text = literal(turn["content"] + "\n\n")
    part = literal([{"type": "text", "text": turn["content"]}])
    own = "messages[0]['content']"
    return (
        f"{{%- if {is_own} %}}"
        f"{{%- set told = {text} ~ {own} if {own} is string else {part} + {own} %}}"
        "{%- set messages = [{'role': messages[0]['role'], 'content': told}] + messages[1:] %}"
        f"{{%- else %}}{{%- set messages = {literal(turns)} + messages %}}{{%- endif %}}"
    )
