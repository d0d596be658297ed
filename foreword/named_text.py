"""Named text: a long instruction, or the beginning of a conversation, as a prompt, exactly.

In: a backbone, a text or turns. Out: a prompt whose virtual tokens are the embeddings of the text's
own tokens, and which says so: rows are written with the text before them, and their ids begin where
the virtual tokens end. An answer behind it is that of the bare model with the text before the row,
id for id; the text is read once. Trains nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import encoding, held_text
from foreword.data.chat_template import ChatTemplate
from foreword.data.media_parts import Message
from foreword.data.template_dates import dated
from foreword.errors import InputError, UnsupportedError
from foreword.model.checks import check_row
from foreword.prompt.soft_prompt import SoftPrompt

METHOD = "text"
_PROBES = ("a", "\u0416")  # texts that begin alike in no tokenizer


def text_prompt(
    backbone: Backbone,
    text: str | Sequence[Message],
    config: EncodingConfig | None = None,
) -> SoftPrompt:
    """Return a text as a prompt: before every conversation as its system turn, or as turns before
    it; before plain text where the tokenizer has no chat template.

    Args:
        backbone: with a tokenizer.
        text: an instruction, or messages that every conversation begins with.
        config: how rows are encoded; default: as the bare model is asked.

    Raises:
        InputError: no tokenizer, or a text that leaves no room for rows.
        DataError: a text or messages that the chat template cannot take.
        UnsupportedError: a model on which embeddings do not stand for the tokens of a text.
    """
    if backbone.tokenizer is None:
        raise InputError("a text needs a tokenizer; give the backbone one")
    _check_exact(backbone)
    config = dated(config or EncodingConfig.saved({}), backbone.tokenizer, backbone.processor)
    value = held_text.checked(list(text) if isinstance(text, tuple) else text)
    is_chat = ChatTemplate(backbone.tokenizer, given=config.chat_template).is_there
    if is_chat and isinstance(value, str):
        value = [{"role": "system", "content": value}]
    ids = _held_ids(backbone, value, config)
    context = backbone.capabilities.context_length
    if context is not None and len(ids) + 2 > context:
        raise InputError(
            f"the text has {len(ids)} tokens and leaves no room for rows: the model's context has "
            f"{context}"
        )
    recorded = replace(
        config,
        held_text=held_text.as_json(value),
        held_tokens=len(ids),
        held_hash=held_text.digest(ids),
    )
    with torch.no_grad():
        values = backbone.embed(torch.tensor(ids, device=backbone.device))
    return SoftPrompt.from_embeddings(values, facts=_facts(backbone, recorded, not is_chat))


def holds_text(prompt: SoftPrompt) -> bool:
    """Return whether a prompt's virtual tokens are the very tokens of a text, see `text_prompt`.

    One that was trained in a text's place records only how rows stand behind it.
    """
    return prompt.facts.get("method") == METHOD


def _check_exact(backbone: Backbone) -> None:
    if backbone.reads_apart:
        raise UnsupportedError("a text as a prompt stands before decoders; this has an encoder")
    if backbone.capabilities.virtual_id is not None:
        raise UnsupportedError(
            "this model looks tokens up in every layer, which embeddings do not hold: train a "
            "prompt, or give the text with each request"
        )


def _held_ids(backbone: Backbone, value: str | list[Message], config: EncodingConfig) -> list[int]:
    """Return the ids that every row with this text before it begins with."""
    tokenizer = backbone.tokenizer
    rows = [
        encoding.encode_prompt(one, tokenizer, config) for one in _probes(value, backbone, config)
    ]
    ids = rows[0]
    for row in rows[1:]:
        ids = held_text.common(ids, row)
    if not ids:
        raise InputError("the text has no tokens of its own; give one that does")
    check_row(ids, "the text", backbone.capabilities.vocab_size, tokenizer)
    return ids


def _probes(value: str | list[Message], backbone: Backbone, config: EncodingConfig) -> list[Any]:
    """Return rows with the text before them that differ right behind it."""
    if isinstance(value, str):
        return [f"{value}\n\n{probe}" for probe in _PROBES]
    template = ChatTemplate(backbone.tokenizer, given=config.chat_template)
    known = held_text.HeldText(tuple(value), template)
    asked = [{"role": "user", "content": probe} for probe in _PROBES]
    rows = [known.before([turn]) for turn in asked]
    if held_text.is_system_turn(value) and template.shows_system_turn():
        own = {"role": "system", "content": _PROBES[0]}
        rows.append(known.before([own, asked[0]]))
    return rows


def _facts(backbone: Backbone, config: EncodingConfig, is_text: bool) -> dict[str, Any]:
    return {
        "base": backbone.identity(),
        "tokenizer": backbone.tokenizer_facts(),
        "method": METHOD,
        "embedding_scale": "as the model's embedding module returns them",
        "encoding": asdict(config) | {"is_text": is_text},
    }
