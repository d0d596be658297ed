"""Tokenizing: a text as token ids, and whether something is a tokenizer at all.

In: a tokenizer of transformers, a text. Out: ids, or one line that names the tokenizer and the
text, whatever the tokenizer raised. Adds nothing to a text and knows no row.
"""

from pathlib import PurePath
from typing import Any

from foreword.compat.error_lines import typed_line
from foreword.errors import DataError, ForewordError, InputError

NUM_SHOWN = 40  # characters of a text, in a message


def token_ids(tokenizer: Any, text: str, *, is_target: bool = False, **options: Any) -> list[int]:
    """Return the ids of a text.

    Args:
        tokenizer: of transformers.
        text: what to read.
        is_target: whether a decoder says the text, behind an encoder that reads another.
        **options: more arguments of the tokenizer.

    Raises:
        DataError: the tokenizer cannot read the text; names both.
    """
    given = {"text_target" if is_target else "text": text}
    try:
        return list(tokenizer(**given, verbose=False, **options)["input_ids"])
    except ForewordError:
        raise
    except Exception as error:  # of any class: tokenizers are compiled, or code of others
        raise DataError(
            f"the tokenizer {_name(tokenizer)} cannot read {_shown(text)} ({typed_line(error)}); "
            "take the tokenizer that the model came with, or give it a token for what it does not "
            "know (unk_token)"
        ) from error


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer of transformers; None is none.

    Raises:
        InputError: says what was given, and how to load a tokenizer.
    """
    from transformers import PreTrainedTokenizerBase

    _check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase)


def check_processor(processor: Any) -> None:
    """Refuse what is no processor of transformers; None is none.

    Raises:
        InputError: says what was given, and how to load a processor.
    """
    from transformers import ProcessorMixin

    _check_kind("processor", processor, ProcessorMixin)


def _check_kind(part: str, value: Any, kind: type) -> None:
    if value is None or isinstance(value, kind):
        return
    found = type(value).__name__
    if isinstance(value, str | int | float):
        found += f" {value!r:.80}"
    named = repr(value) if isinstance(value, str) else "NAME"
    raise InputError(
        f"{part}: expected a {part} of transformers, got {found}; give "
        f"Auto{part.title()}.from_pretrained({named:.80})"
    )


def _name(tokenizer: Any) -> str:
    """Return what a tokenizer is called, without folders of this machine, or its class."""
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    path = PurePath(name)
    return (path.name if path.is_absolute() else name) or type(tokenizer).__name__


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= NUM_SHOWN else f"{ascii(text[:NUM_SHOWN])}..."
