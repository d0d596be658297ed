"""Contexts: what a small prompt is to stand for, as teachers that are ready to answer.

In: a backbone; a text, turns or a trained prompt; queries, if there are some; what the small prompt
is to be. Out: the context as a prompt, or as one for each part of a long text, and the queries as
it is asked them; or a refusal. Asks nothing and trains nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig, EncodingConfig, Form
from foreword.data.media_parts import Message
from foreword.data.template_dates import dated
from foreword.distillation import input_checks
from foreword.distillation.parts import about_parts, parts_of, prompts_of, typed
from foreword.distillation.queries import Query, text_of
from foreword.distillation.self_study import room_for
from foreword.errors import InputError, UnsupportedError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States, attention_part

NUM_VIRTUAL = 64

AnyContext = str | Sequence[Message] | SoftPrompt


@dataclass(frozen=True, eq=False)
class ReadContext:
    """What a small prompt is to stand for.

    Attributes:
        teachers: the context as a prompt, or each part of a text that has several.
        queries: as the teachers are asked them; None: they are to be asked for some.
        num_virtual: P of the small prompt.
        texts: what each teacher reads, as text; none of a prompt.
        is_instruction: whether a text is an instruction, and not a document to ask about.
        seconds: that it took to read it once.
    """

    teachers: list[SoftPrompt]
    queries: list[Query] | None
    num_virtual: int
    texts: Sequence[str] = ()
    is_instruction: bool = False
    seconds: float = 0.0

    @property
    def said(self) -> list[str]:
        """What is to be known of it, a sentence each."""
        return [about_parts(self.teachers)] if len(self.teachers) > 1 else []


def read(
    backbone: Backbone,
    given: AnyContext,
    queries: Sequence[Query] | None,
    num_virtual: int | None,
    config: DistillConfig,
    *,
    form: Form = "key_values",
    is_instruction: bool = False,
    encoding: EncodingConfig | None = None,
) -> ReadContext:
    """Return a context that has been read once.

    Args:
        backbone: with a tokenizer.
        given: an instruction, a document, turns of a conversation, or a prompt.
        queries: at least two; None: the teachers are to be asked for some.
        num_virtual: P of the small prompt; None: 64, or that of a prompt whose form changes.
        config: who asks, and how long queries and answers may be.
        form: of the small prompt.
        is_instruction: whether a text is an instruction.
        encoding: how a text and its rows are encoded; default: as the bare model is asked today.
            Of a prompt that records no day it is the day.

    Raises:
        UnsupportedError: a text before an encoder, a model that hears, or keys and values of one
            that keeps none.
        InputError: too few queries, none where only a prompt is given, or a context that is no
            longer than P. DataError: what is no text, or holds more. MismatchError: a prompt of
            another base.
    """
    text = None if isinstance(given, SoftPrompt) else given
    input_checks.check(text, queries, config, form)
    _check_encoder(backbone)
    if isinstance(given, SoftPrompt):
        found = _of_prompt(backbone, given, queries, num_virtual, form, encoding)
    else:
        found = _of_text(backbone, given, queries, num_virtual or NUM_VIRTUAL, config,
                         is_instruction=is_instruction or not isinstance(given, str),
                         encoding=encoding)  # fmt: skip
    started = time.perf_counter()
    for teacher in found.teachers:
        backbone.compile(teacher)
    if form == "key_values":
        _check_has_length(backbone, found.teachers[0])
    return replace(found, seconds=time.perf_counter() - started)


def _check_encoder(backbone: Backbone) -> None:
    """Refuse a model that hears each row.

    Raises:
        UnsupportedError: queries are text.
    """
    encoder = backbone.capabilities.encoder
    if encoder is not None and not encoder.reads_text:
        raise UnsupportedError(
            f"{backbone.capabilities.model_type}: its encoder hears each row, and queries are text"
        )


def _check_has_length(backbone: Backbone, teacher: SoftPrompt) -> None:
    """Refuse to make a context smaller on a model whose states are of one size, whatever it reads.

    Raises:
        UnsupportedError: says what is as small, and exact.
    """
    states = backbone.compile(teacher).states
    if isinstance(states, States) and not any(attention_part(layer) for layer in states):
        raise UnsupportedError(
            f"{backbone.capabilities.model_type}: no layer attends, so that what is read is as "
            "large after one token as after many: the context itself is as small, and exact "
            "(foreword prompts add); --form embeddings learns fewer tokens to read"
        )


def _of_prompt(
    backbone: Backbone,
    prompt: SoftPrompt,
    queries: Sequence[Query] | None,
    num_virtual: int | None,
    form: Form,
    encoding: EncodingConfig | None,
) -> ReadContext:
    backbone.check(prompt)
    chat.check_template(backbone, prompt)
    prompt = _on_a_day(backbone, prompt, encoding)
    assert queries is not None
    length, is_frozen = prompt.num_virtual_tokens, prompt.form == "key_values"
    is_changed = is_frozen and form == "embeddings"
    num_virtual = num_virtual or (length if is_changed else NUM_VIRTUAL)
    if num_virtual >= length and not is_changed:
        raise InputError(
            f"the prompt has {length} virtual tokens, and --num-virtual-tokens {num_virtual} are "
            "not fewer: lower it" + (", or change its form: --form embeddings" if is_frozen else "")
        )
    return ReadContext([prompt], typed(backbone, prompt, queries), num_virtual)


def _on_a_day(
    backbone: Backbone, prompt: SoftPrompt, recorded: EncodingConfig | None
) -> SoftPrompt:
    """Return a prompt that knows the day which its chat template prints: its own, or else that on
    which the distillation began.
    """
    saved = chat.saved_encoding(prompt)
    if saved.get("date") is not None or saved.get("is_text"):
        return prompt
    readers = (backbone.tokenizer, backbone.processor)
    date = dated(chat.encoding_of(prompt), *readers, recorded=recorded).date
    if date is None:
        return prompt
    facts = {"encoding": saved | {"date": date}}
    return prompt.replaced(prompt.tensors, prompt.facts | facts)


def _of_text(
    backbone: Backbone,
    text: str | Sequence[Message],
    queries: Sequence[Query] | None,
    num_virtual: int,
    config: DistillConfig,
    *,
    is_instruction: bool,
    encoding: EncodingConfig | None,
) -> ReadContext:
    if backbone.reads_apart:
        raise UnsupportedError(
            f"{backbone.capabilities.model_type}: a text cannot stand before an encoder's rows as "
            "a prompt: train one, and give that as the context"
        )
    asked = None if queries is None else typed(backbone, None, queries)
    room = room_for(backbone, config, asked, is_instruction=is_instruction)
    parts = parts_of(backbone, text, room)
    if parts is not None and is_instruction:
        raise InputError(
            f"the instruction and {room} tokens of queries and answers do not fit in the model's "
            f"context of {backbone.capabilities.context_length}, and no part of an instruction is "
            "one: shorten it, or give a document as --context"
        )
    teachers = prompts_of(backbone, text, parts, encoding)
    length = sum(one.num_virtual_tokens for one in teachers)
    if length <= num_virtual:
        raise InputError(
            f"the text has {length} tokens, no more than --num-virtual-tokens "
            f"{num_virtual}: as it is, it is smaller and exact (foreword prompts add NAME --text)"
        )
    if teachers[0].num_virtual_tokens < num_virtual:
        raise InputError(
            f"a part of the text has {teachers[0].num_virtual_tokens} tokens beside {room} of "
            f"queries and answers, fewer than --num-virtual-tokens {num_virtual}: lower it, or "
            "give shorter queries"
        )
    return ReadContext(teachers, asked, num_virtual, parts or [text_of(text)], is_instruction)
