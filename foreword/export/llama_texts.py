"""Texts of llama.cpp: what a GGUF file has to say so that it reads them as foreword does.

In: a file's fields, and a base's tokenizer with a prompt's tokens in it. Out: fields to write, or a
refusal. llama.cpp puts a space before every piece of text behind a special token of a SentencePiece
vocabulary unless the file says no; transformers puts it before the beginning alone. Knows no file
format and runs nothing.
"""

from collections.abc import Mapping
from typing import Any

from foreword.backbone import Backbone
from foreword.data.tokenizing import token_ids
from foreword.errors import UnsupportedError
from foreword.export import chat_templates

SPACE = "tokenizer.ggml.add_space_prefix"
NAME, KIND = "general.name", "tokenizer.ggml.model"
SENTENCE_PIECES = "llama"
WORD_START = "\u2581"
# llama.cpp drops white space behind every special token of a model whose name has one of these.
DROPPING = ("phi-3", "phi3")


def fields_for(
    fields: Mapping[str, Any], backbone: Backbone, tokenizer: Any, token: str
) -> dict[str, bool]:
    """Return the fields that let llama.cpp read texts behind a prompt's tokens as foreword does.

    Args:
        fields: of the base's file.
        backbone: the base, with its own tokenizer.
        tokenizer: one that knows the prompts' tokens, too.
        token: one of them.

    Raises:
        UnsupportedError: there are none.
    """
    name = str(fields.get(NAME, ""))
    if any(one in name.lower() for one in DROPPING):
        raise UnsupportedError(
            f"{backbone.name}: llama.cpp drops white space behind special tokens of a model whose "
            f"{NAME} is {name!r:.80}, and training did not; use foreword's server"
        )
    if fields.get(KIND) != SENTENCE_PIECES:
        return {}

    def behind(text: str) -> list[int]:
        return token_ids(tokenizer, token + text, add_special_tokens=False)[1:]

    if tokenizer.convert_ids_to_tokens(behind("a"))[0].startswith(WORD_START):
        raise UnsupportedError(
            f"{backbone.name}: this release of transformers puts a space behind special tokens of "
            "a SentencePiece vocabulary; update transformers, or use foreword's server"
        )
    for text in chat_templates.base_texts(backbone):
        if token_ids(backbone.tokenizer, text, add_special_tokens=False) != behind(text):
            raise UnsupportedError(
                f"{chat_templates.BASE}: the chat template of {backbone.name} begins with text, "
                "before which SentencePiece puts a space, and none behind a prompt's tokens: one "
                "file cannot say both to llama.cpp; use foreword's server"
            )
    return {SPACE: False}
