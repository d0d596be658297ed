"""Tokenizing: a text as token ids, and whether something is a tokenizer at all.

In: a tokenizer of transformers, a text. Out: ids, or one line that names the tokenizer and the
text, whatever the tokenizer raised. Adds nothing to a text and knows no row.
"""

from pathlib import PurePath
from typing import Any

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
        said = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"the tokenizer {_name(tokenizer)} cannot read {_shown(text)} ({type(error).__name__}: "
            f"{said}); take the tokenizer that the model came with, or give it a token for what "
            "it does not know (unk_token)"
        ) from error


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer of transformers; None is none.

    Raises:
        InputError: says what was given, and how to load a tokenizer.
    """
    from transformers import PreTrainedTokenizerBase

    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    named = repr(tokenizer) if isinstance(tokenizer, str) else "NAME"
    raise InputError(
        f"tokenizer: expected a tokenizer of transformers, got {_kind(tokenizer)}; give "
        f"AutoTokenizer.from_pretrained({named:.80})"
    )


def check_processor(processor: Any) -> None:
    """Refuse what is no processor of transformers; None is none.

    Raises:
        InputError: says what was given, and how to load a processor.
    """
    from transformers import ProcessorMixin

    if processor is None or isinstance(processor, ProcessorMixin):
        return
    named = repr(processor) if isinstance(processor, str) else "NAME"
    raise InputError(
        f"processor: expected a processor of transformers, got {_kind(processor)}; give "
        f"AutoProcessor.from_pretrained({named:.80})"
    )


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{name} {value!r:.80}" if isinstance(value, str | int | float) else name


def _name(tokenizer: Any) -> str:
    """Return what a tokenizer is called, without folders of this machine, or its class."""
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    path = PurePath(name)
    return (path.name if path.is_absolute() else name) or type(tokenizer).__name__


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= NUM_SHOWN else f"{ascii(text[:NUM_SHOWN])}..."
